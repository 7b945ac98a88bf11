"""The grammar of SPEC: the only door for files from elsewhere.

    demo                       the teacher that ships with the package
    DIRECTORY                  a run directory: its student
    NAME                       a network of ours (resnet20, wrn-16-1, lenet5, mobilenet, …)
    torchvision:NAME           a classifier of torchvision
    timm:NAME                  a network of timm
    hf:DIR                     a local image classifier of Hugging Face
    onnx:FILE                  a graph
    FILE.pt2, TorchScript      a graph that may run code when it is read: needs --trust-code
    ensemble:FILE.toml         several teachers, for build and distill (specs.ensembles)
    package.module:callable    an installed network; the callable returns an nn.Module, or a
                               function from images to answers (a black box)
    file.py:callable           the same from a file; runs the code in it: needs --trust-code

Weights come from a file of safetensors, or of torch.save through its weights-only reader, whatever
its suffix. What a source does not tell about its input comes from flags.
"""

from synthkd.specs.classifiers import DEMO_TEACHER, load_classifier, origin
from synthkd.specs.code import call_from_file
from synthkd.specs.header import Card, card_of, read_card
from synthkd.specs.sources import STUDENT, BlackBox, is_saved, living
from synthkd.specs.students import new_student
from synthkd.specs.teachers import classes_named, load_teacher, load_teachers, rebuilt
from synthkd.specs.weights import read_weights

__all__ = [
    "DEMO_TEACHER", "STUDENT", "BlackBox", "Card", "call_from_file", "card_of", "classes_named",
    "is_saved", "living", "load_classifier", "load_teacher", "load_teachers", "new_student",
    "origin", "read_card", "read_weights", "rebuilt",
]  # fmt: skip
