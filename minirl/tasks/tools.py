"""Tools that a model may call: a calculator, and programs of a few assignments.

    3841*9273                        35617593
    eggs = 16-3-4; answer = eggs*2   18

Text that a model wrote is never evaluated by Python. A recursive-descent parser reads it, one
method for each rule of the grammar, from the weakest operator to the strongest:

    sum      product, then any number of: + or -, product
    product  factor, then any number of: * or / or // or %, factor
    factor   + or -, factor     or power
    power    operand            or operand ** factor
    operand  number, name, or (sum), and perhaps a percent sign behind it

The operators mean what they mean in Python, and values are exact fractions. A text's length, the
depth of its parentheses and the size of its numbers are bounded, and so is the time.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

TOOL_WORDS = ("<tool>", "</tool>", "<result>", "</result>", "<program>", "</program>")

LONGEST = 1000         # characters
DEEPEST = 30           # parentheses, signs and powers inside one another
BITS = 1000            # of a numerator or a denominator: about 300 digits
PLACES = 10            # digits of a result behind its point

NAME = r"[A-Za-z_][A-Za-z_0-9]*"
NUMBER = r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
BLANKS = " \t\r\n"
TOKEN = re.compile(rf"[{BLANKS}]*({NUMBER}|{NAME}|\*\*|//|[-+*/%()]|\Z)")
TYPOGRAPHY = str.maketrans("×÷\u2212", "*/-")     # the last is the minus that is no hyphen

Operation = Callable[[Fraction, Fraction], "Fraction | int"]
SUMS: dict[str, Operation] = {"+": operator.add, "-": operator.sub}
PRODUCTS: dict[str, Operation] = {"*": operator.mul, "/": operator.truediv,
                                  "//": operator.floordiv, "%": operator.mod}


class ToolError(ValueError):
    """What a tool was given is not something that it can do. The text is short and in ASCII: a
    model reads it."""


def calculate(expression: str) -> str:
    """Calculate the value of an arithmetic expression.

    It may have + - * / // % ** and parentheses. Numbers are written 1234, 1,234, 0.5 or .5. A
    percent sign with no operand behind it means hundredths. An integer is written in full. Any
    other value is a decimal of at most 10 digits behind the point, not counting the zeros that a
    value below 1 starts with; the last is rounded, half to even.

    Args:
        expression: The arithmetic, such as "3841*9273" or "(20/100)*25".

    Returns:
        The value, such as "35617593" or "5".

    Raises:
        ToolError: If it is anything else, divides by zero, or is too long, too deep or too large.

    >>> calculate("3841*9273"), calculate("80,000*150%"), calculate("2/3")
    ('35617593', '120000', '0.6666666667')
    >>> calculate("9**9**9**9")
    Traceback (most recent call last):
    minirl.tasks.tools.ToolError: a number is too large: at most 300 digits
    """
    return _written(_evaluate(_checked(expression), {}))


def run_program(program: str) -> str:
    """Return the value of a program: of its variable `answer`, or else of its last assignment.

    Paper      Program of thoughts, arXiv:2211.12588; PAL, arXiv:2211.10435 (there, Python).
    Raises     ToolError for anything but assignments of arithmetic to names, one a line or with
               semicolons between them, and as `calculate` does.

    There are no loops and no functions: a program takes as long as its text.

    >>> run_program("eggs = 16-3-4; answer = eggs*2")
    '18'
    """
    values: dict[str, Fraction] = {}
    last = None
    for line in re.split(r"[\n;]", _checked(program)):
        if line.strip(BLANKS):
            name, equals, expression = line.partition("=")
            name = name.strip(BLANKS)
            if not equals or not re.fullmatch(NAME, name):
                raise ToolError("a line is no assignment: write name = arithmetic")
            last = values[name] = _evaluate(expression, values)
    if last is None:
        raise ToolError("the program is empty: write name = arithmetic")
    return _written(values.get("answer", last))


def call(tool: Callable[[str], str], argument: str) -> str:
    """Return what a tool answers, or "error: ..." with what it says about a wrong argument.

    >>> call(calculate, "6*7"), call(calculate, "1/0")
    ('42', 'error: division by zero')
    """
    try:
        return tool(argument)
    except ToolError as error:
        return f"error: {error}"


# the parser

def _checked(text: str) -> str:
    """The text with plain operators, if it is one and not too long."""
    if not isinstance(text, str):
        raise ToolError(f"a {type(text).__name__} came: text is expected")
    if len(text) > LONGEST:
        raise ToolError(f"{len(text)} characters are too many: at most {LONGEST}")
    return text.translate(TYPOGRAPHY)


def _evaluate(expression: str, values: Mapping[str, Fraction]) -> Fraction:
    try:
        return _Parser(_tokens(expression), values).value()
    except ZeroDivisionError:
        raise ToolError("division by zero") from None


def _tokens(expression: str) -> list[str]:
    """Numbers, names and operators, and "" at the end."""
    tokens: list[str] = []
    position = 0
    while not tokens or tokens[-1]:
        token = TOKEN.match(expression, position)
        if token is None:
            character = expression[position:].lstrip(BLANKS)[0]
            raise ToolError(f"{ascii(character)} is no arithmetic")
        tokens.append(token[1])
        position = token.end()
    return tokens


class _Parser:
    """The value of a list of tokens: a method for each rule of the grammar, which reads the tokens
    that the rule covers and returns their value."""

    def __init__(self, tokens: list[str], values: Mapping[str, Fraction]) -> None:
        self.tokens, self.values = tokens, values
        self.position = self.depth = 0

    @property
    def token(self) -> str:
        return self.tokens[self.position]

    def take(self) -> str:
        self.position += 1
        return self.tokens[self.position - 1]

    def value(self) -> Fraction:
        value = self.sum()
        if self.token:
            raise ToolError(f"{self.token:.20} is not expected here")
        return value

    def sum(self) -> Fraction:
        return self.chain(self.product, SUMS)

    def product(self) -> Fraction:
        return self.chain(self.factor, PRODUCTS)

    def chain(self, operand: Callable[[], Fraction], operations: Mapping[str, Operation]
              ) -> Fraction:
        """Operands with operators between them, from the left to the right."""
        value = operand()
        while self.token in operations:
            operation = operations[self.take()]
            value = _bounded(operation(value, operand()))
        return value

    def factor(self) -> Fraction:
        self.depth += 1    # all that is inside something comes through here
        if self.depth > DEEPEST:
            raise ToolError(f"it is too deep: at most {DEEPEST} parentheses")
        if self.token in SUMS:
            value = -self.factor() if self.take() == "-" else self.factor()
        else:
            value = self.power()
        self.depth -= 1
        return value

    def power(self) -> Fraction:
        base = self.operand()
        if self.token != "**":
            return base
        self.take()
        return _power(base, self.factor())    # 2**3**2 is 2**9

    def operand(self) -> Fraction:
        token = self.take()
        if token == "(":
            value = self.sum()
            if self.take() != ")":
                raise ToolError("a ) is missing")
        elif token[:1].isalpha() or token[:1] == "_":
            if token not in self.values:
                raise ToolError(f"{token:.20} has no value")
            value = self.values[token]
        elif token[:1].isdigit() or token[:1] == ".":
            value = _bounded(Fraction(token.replace(",", "")))
        else:
            raise ToolError(f"a number is missing before {token or 'the end'}")
        return value / 100 if self.percent() else value

    def percent(self) -> bool:
        """Take a percent sign, unless it is the operator with a number behind it."""
        if self.token != "%":
            return False
        behind = self.tokens[self.position + 1]
        if behind in SUMS:
            raise ToolError(f"% before {behind} has two meanings: write parentheses")
        is_operator = behind == "(" or behind[:1].isalnum() or behind[:1] in (".", "_")
        if not is_operator:
            self.take()
        return not is_operator


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    """base ** exponent, if the result is small enough: this is known before it is calculated."""
    if exponent.denominator != 1:
        raise ToolError("an exponent is a whole number")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if (bits - 1) * abs(exponent.numerator) > BITS:    # n bits: at least 2**(n-1)
        raise _too_large()
    return _bounded(base ** exponent.numerator)


def _bounded(value: Fraction | int) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > BITS:
        raise _too_large()
    return Fraction(value)


def _too_large() -> ToolError:
    return ToolError("a number is too large: at most 300 digits")


def _written(value: Fraction) -> str:
    """The value as `calculate` writes it."""
    if value.denominator == 1:
        return str(value.numerator)
    zeros = len(str((value.denominator - 1) // abs(value.numerator))) - 1    # 1/200 = 0.005: two
    places = PLACES + zeros
    digits = str(round(abs(value) * 10 ** places)).zfill(places + 1)
    text = f"{digits[:-places]}.{digits[-places:]}".rstrip("0").rstrip(".")
    return f"-{text}" if value < 0 else text
