"""Two teachers as one: their probabilities averaged.

    python examples/two_teachers.py

Any object that follows `synthkd.teachers.protocol.Teacher` can teach; `EnsembleTeacher` is one.
"""

import torch

import synthkd
from synthkd.specs import load_teacher
from synthkd.teachers.ensemble import EnsembleTeacher
from synthkd.teachers.protocol import Teacher


def noisy(teacher: Teacher, amount: float) -> Teacher:
    """The demo teacher with noise in its weights: another opinion, for the example."""
    rng = torch.Generator().manual_seed(1)
    for parameter in teacher.network.parameters():
        noise = torch.randn(parameter.shape, generator=rng)
        parameter.data.add_(amount * parameter.data.std(correction=0) * noise)
    return teacher


def main(images: int = 20_000) -> float:
    """Distils from both; returns the student's accuracy."""
    one, other = (load_teacher(synthkd.Recipe().teacher) for _ in range(2))
    both = EnsembleTeacher([one, noisy(other, 0.05)])
    lab = synthkd.build(synthkd.Recipe.of({"budget.images": images}), teacher=both)
    for round in lab:
        print(f"{round.stage} {round.share:.0%} {round.measures.get('loss', 0.0):.3f}")
    assert lab.learner is not None
    found = synthkd.evaluate(lab.learner.student, both, "demo:unseen")
    print(f"student {found.student_accuracy:.1%}, both teachers {found.teacher_accuracy:.1%}")
    return found.student_accuracy or 0.0


if __name__ == "__main__":
    main()
