"""A web whose truth is known, to see the recall that a real one hides.

Its mathematics has six topics in a row, sums to Korean. A page of a topic has sentences of the ones
beside it in the row, and a site that is about a topic is about the next one, too. Seeds are of the
first two topics alone. So a classifier that has learnt from them knows the third from a few words
and the last not at all, and sites lead from one to the next: what DeepSeekMath's rounds are for.

The rest is news, some of it Korean, cooking, sport, shops and code, with numbers in all of them.
One page in eight is of mathematics, with a sixth of all words. Some of these are on sites of other
things, where no rule about sites finds them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from minirl.corpus.pages import Page

MATHS = ("sums", "algebra", "geometry", "statistics", "proofs", "Korean maths")
OTHER = ("news", "cooking", "sport", "shops", "code", "Korean news")
SITES = 300
PLANTED = 0.01               # share of mathematical pages that hold a question of the benchmark

# {a} and {b} are numbers to 9, {s} is their sum and {p} their product, {n} a larger number; {w} is
# one of 8,000 names: a real web has many words that a classifier has never met
SENTENCES = {
    "sums": (
        "{a} + {b} = {s}.", "{a} + {b} = {s}, and {b} + {a} = {s}.",
        "Add {a} and {b}: {a}+{b}={s}.",
        "The sum of {a} and {b} is {s}.", "{s} - {a} = {b}.", "{a} x {b} = {p}, carry the tens.",
        "Write the digits in columns and carry the one.", "We count on from {a}: {a} + {b} = {s}."),
    "algebra": (
        "Solve x + {a} = {s}, so x = {b}.", "The equation {a}x = {p} has the root x = {b}.",
        "Factor the polynomial x^2 - {s}x + {p} = (x - {a})(x - {b}).",
        "Both sides of the equation are divided by the coefficient {a}.",
        "The unknown is isolated and the terms are collected.",
        "A quadratic has two roots where the discriminant is positive."),
    "geometry": (
        "The triangle has a base of {a} and a height of {b}, so its area is {p}/2.",
        "The angle at the vertex is {n} degrees.", "The circle has radius {a} and a tangent.",
        "Two sides are congruent, so the triangle is isosceles.",
        "By Pythagoras the hypotenuse is sqrt({a}^2 + {b}^2).",
        "The perpendicular bisector meets the chord at its midpoint."),
    "statistics": (
        "The mean of {a} and {b} is {s}/2.", "The variance of the sample is {n}.",
        "We reject the hypothesis at the {a} percent level.", "Draw {n} samples from a normal.",
        "The estimator is unbiased and its standard error is {a}.",
        "The regression has {b} degrees of freedom and a residual."),
    "proofs": (
        "Let epsilon be positive; then there is a delta.", "By the lemma the sequence converges.",
        "Suppose the set is compact and the map continuous.", "The proof is by induction on n.",
        "Hence the subgroup is normal, which proves the theorem.",
        "A contradiction, so the kernel is trivial. QED."),
    "Korean maths": (
        "{a} 더하기 {b} 는 {s} 이다.", "두 수의 합은 {s} 이고 곱은 {p} 이다.",
        "방정식의 해를 구하여라.", "삼각형의 넓이는 {p} 의 절반이다.",
        "함수의 그래프를 그려 보자.", "이 정리를 증명하여라."),
    "news": (
        "{w} spoke to {n} people on the square.", "The strike in {w} enters its day {a}.",
        "Police closed the road to {w} for {b} hours.", "Voters in {w} will decide in May.",
        "Mayor {w} denied the report.", "Rain is expected in {w}, up to {n} mm."),
    "cooking": (
        "Add {a} spoons of {w} and {b} eggs.", "Bake the {w} for {n} minutes.", "Serve it warm.",
        "Divide the dough in {a} equal parts.", "Chop the {w} and stir the sauce.",
        "A pinch of {w}, and {n} grams of flour."),
    "sport": (
        "{w} won by {a} to {b}.", "{w} scored {a} points in {b} games.", "Coach {w} was angry.",
        "A mean season for {w}: {n} fouls and {a} red cards.", "The final is on Sunday.",
        "{w} ran {n} metres in the lead."),
    "shops": (
        "Buy {a} + {b} free.", "{w} only {n} dollars, was {s}.", "Free delivery above {n} dollars.",
        "{w} in stock: {a} left, size {b}.", "The angle of the {w} seat can be changed.",
        "Solve your storage problem with this set of {a} {w}."),
    "code": (
        "for {w} in range({a}):", "{w} = {a} + {b}", "assert {w}({a}, {b}) == {s}",
        "return {w} - {a}", "def {w}(x, y):  # O(n)", "import {w}", "print({w} + {a})  # {s}"),
    "Korean news": (
        "{w} 시장이 {n} 명 앞에서 말했다.", "{w} 에 비가 {n} mm 온다.",
        "경찰이 {b} 시간 동안 길을 막았다.", "두 팀이 {a} 대 {b} 로 비겼다.",
        "{w} 선수가 {a} 골을 넣었다.", "이 소식을 {w} 가 전했다."),
    "talk": (
        "Thanks for your help, {w}.", "See you next week in {w}.", "What do you think, {w}?",
        "This page was last edited by {w}.", "Log in to write to {w}.", "I like {w} a lot.",
        "Please read the rules of {w} first.", "It took {w} {a} days to find this."),
}
SYLLABLES = "ba ce di fo gu ha je ki lo mu na pe ri so tu va we xi yo za".split()
STRAY = 0.05                 # of the other pages: the share that has a sentence of mathematics


def web(pages: int, seed: int = 0, *, sites: int = SITES) -> Iterator[Page]:
    """Yield pages with their truth, label 1 for mathematics: the same for the same seed.

    Their further fields are "topic" and "planted", whether they hold a question of `benchmark`.
    """
    rng = random.Random(f"web {seed}")
    domains = [site(rng, i) for i in range(sites)]
    questions = benchmark(seed)
    for number in range(pages):
        domain, paths = rng.choice(domains)
        path, topic = rng.choice(paths)(rng)
        text, planted = page_text(rng, topic), 0
        if topic in MATHS and rng.random() < PLANTED:
            text, planted = f"{text} {disguised(rng, rng.choice(questions))}", 1
        yield Page(text, f"https://{domain}{path}/{number}", int(topic in MATHS),
                   {"topic": topic, "planted": planted})


def seed_texts(pages: int, seed: int = 0) -> list[str]:
    """Return pages of the first two topics, which are not of this web: the seed corpus."""
    rng = random.Random(f"seeds {seed}")
    return [page_text(rng, rng.choice(MATHS[:2])) for _ in range(pages)]


Choice = Callable[[random.Random], tuple[str, str]]


def site(rng: random.Random, i: int) -> tuple[str, list[Choice]]:
    """Return a domain and, for each part of it, what draws the path and topic of a page.

    Of ten sites one is a forum and one a college, each with two topics of mathematics: seven pages
    of the first for three of the second.
    """
    at = (0, 0, 1, 2, 3, 4)[i // 10 % 6]                        # sums are the most frequent topic
    pair, other = MATHS[at:at + 2], rng.choice(OTHER)

    def part(path: str, share: float) -> Choice:
        """`share` of its pages are about the site's two topics of mathematics."""
        return lambda rng: (path, pair[rng.random() < 0.3] if rng.random() < share else other)

    if i % 10 == 0:
        return f"forum{i}.org", [part("/questions", 0.97)] * 4 + [part("/lounge", 0.0)]
    if i % 10 == 1:
        return f"college{i}.edu", [part("/mathematics", 0.97), part("/sport", 0.0),
                                   part("/people", 0.0)]
    name = other.lower().replace(" ", "-")
    return f"{name}{i}.com", [part("/archive", 0.03)] * 3 + [part("/about", 0.0)]


def page_text(rng: random.Random, topic: str) -> str:
    """Return 6 to 12 sentences: most of the topic, some of those beside it, some small talk."""
    beside, stray = [topic], rng.random() < STRAY
    if topic in MATHS:
        at = MATHS.index(topic)
        beside = [MATHS[i] for i in (at - 1, at + 1) if 0 <= i < len(MATHS)]
    topics = rng.choices([topic, rng.choice(beside), "talk"], (0.6, 0.1, 0.3),
                         k=rng.randint(6, 12))
    if topic not in MATHS and stray:
        topics[0] = rng.choice(MATHS[:2])
    return ("\n" if topic == "code" else " ").join(sentence(rng, name) for name in topics)


def sentence(rng: random.Random, topic: str) -> str:
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    name = "".join(rng.choices(SYLLABLES, k=3)).title()
    return rng.choice(SENTENCES[topic]).format(
        a=a, b=b, s=a + b, p=a * b, n=rng.randint(10, 99), w=name)


# a benchmark, some of whose questions stand in the web

def benchmark(seed: int = 0) -> list[str]:
    """Return 50 questions of more than ten words, and 10 of eight."""
    rng = random.Random(f"benchmark {seed}")

    def number() -> int:
        return rng.randint(100, 999)

    long = [f"Ann has {number()} marbles, buys {number()} at the shop, gives {number()} to Bob and "
            f"{number()} to Cy: how many marbles are left?" for _ in range(50)]
    return long + [f"What is {number()} times {number()} plus {number()}?" for _ in range(10)]


def disguised(rng: random.Random, question: str) -> str:
    """Return a question as the web might quote it: the same words."""
    return rng.choice([question, question.upper(), f"“{question}”", question.replace(",", " -")])
