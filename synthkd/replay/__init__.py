"""What the student sees again: the replay memory of images, and the generative one."""

from synthkd.recipe import Recipe
from synthkd.replay.generative import GenerativeReplay, Label
from synthkd.replay.memory import Memory
from synthkd.replay.protocol import Replay, ReplayBatch
from synthkd.teachers.protocol import Teacher

__all__ = ["GenerativeReplay", "Memory", "Replay", "ReplayBatch", "replay_for"]


def replay_for(recipe: Recipe, teacher: Teacher, label: Label) -> Replay:
    """The replay memory that a recipe asks for, empty. `label` gives the teacher's logits for uint8
    images. A finished data set is always kept as images."""
    table = recipe.memory
    if table.form == "autoencoder" and not recipe.data.synthetic:
        return GenerativeReplay(table.capacity, teacher, label, seed=recipe.run.seed)
    shape, several = teacher.spec.shape, teacher.independent
    return Memory(table.capacity, shape, teacher.classes, independent=several)
