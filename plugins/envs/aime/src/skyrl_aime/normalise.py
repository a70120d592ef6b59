r"""One spelling for answers that differ in LaTeX, units and spaces only.

The rules are Minerva's (Lewkowycz et al. 2022, arXiv:2206.14858, appendix D.1) in
the form that DAPO's and SkyRL's rewards apply. They work on text, not on
mathematics: ``0.5`` and ``\frac{1}{2}`` stay different. Their order counts, and
their oddities are kept, so that rewards equal SkyRL's: every ``sue`` or
``points`` inside a word goes as well.
"""

import re

_REPLACED = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    (r"\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (r",\text{and}", ","),
    (r"\text{and}", ","),
    (r"\text{m}", r"\text{}"),
)
_REMOVED = (
    *("square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units"),
    *(r"\ldots", "sue", "points", "feet", "minutes", "digits", "cents", "degrees", "cm", "gm"),
    *("pounds", "meters", "meals", "edges", "students", "childrentickets", "multiples"),
    *(r"\text{s}", r"\text{.}", "\\text{\ns}", r"\text{}^2", r"\text{}^3", "\\text{\n}"),
    *(r"\text{}", r"\mathrm{th}", r"^\circ", r"^{\circ}", r"\;", r",\!", "{,}", '"', r"\dots"),
)
_REWRITTEN = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r".*?\$(.*?)\$.*", r"$\1$"),  # what the first pair of dollar signs holds
        (r"\\text\{(.*?)\}", r"\1"),
        (r"\\textbf\{(.*?)\}", r"\1"),
        (r"\\overline\{(.*?)\}", r"\1"),
        (r"\\boxed\{(.*)\}", r"\1"),
        (r"frac([^{])(.)", r"frac{\1}{\2}"),  # \frac12 is \frac{1}{2}
        (r"sqrt([^{])", r"sqrt{\1}"),
    )
)


def normalise(answer: str) -> str:
    r"""The answer in one spelling.

    Example:
        >>> normalise(r"x = \frac12 \text{ cm}"), normalise("$1,234$ dollars")
        ('\\frac{1}{2}', '1234')
    """
    text = answer.rpartition("=")[2]
    for old, new in _REPLACED:
        text = text.replace(old, new)
    for old in _REMOVED:
        text = text.replace(old, "")
    for pattern, replacement in _REWRITTEN:
        text = pattern.sub(replacement, text)
    text = text.replace("$", "")
    digits = text.replace(",", "")
    return (digits if digits.isdigit() else text).strip()
