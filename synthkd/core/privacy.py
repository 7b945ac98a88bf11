"""What "data-free" gives and does not give, in the one wording that every report uses."""

_BEGAN = "This run read no real data."
_REST = (
    "That is a statement about the process, not about the result. The teacher was trained on real "
    "data; synthetic images and the student carry information from it and may reveal it. Treat "
    "both with the same care as the teacher, unless the teacher was trained with differential "
    "privacy. We have not measured leakage; only you, who hold the data, can."
)
STATEMENT = f"{_BEGAN} {_REST}"


def statement(real_images_read: int, *, level: int = 0) -> str:
    """What is to be said beside a student or a set of images of a run that read so many real
    images, and whose promise level is `level` (`core.promise.PROMISES`): from 2 on, something
    that it began with had seen real images, whatever the run itself read.

    >>> statement(0) == STATEMENT
    True
    >>> statement(1)[:84]
    'This run read 1 real image, and what it made carries information from it as well as '
    """
    if real_images_read:
        noun, them = ("image", "it") if real_images_read == 1 else ("images", "them")
        began = (
            f"This run read {real_images_read:,} real {noun}, and what it made carries information "
            f"from {them} as well as from the teacher."
        )
    elif level > 1:
        began = "This run read no real images, but what it began with had seen some."
    else:
        began = _BEGAN
    return f"{began} {_REST}"
