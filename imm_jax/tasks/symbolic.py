"""Questions that practice in arithmetic does not teach: letters, order, state, instructions."""

from imm_jax.tasks.drafts import Draft, Draw, Kind, listing
from imm_jax.tasks.vocabulary import DAYS, MONTHS, PEOPLE, SURNAMES, THINGS, WORDS

NAMES = tuple(name for name, _, _ in PEOPLE)
EVENTS = ("concert", "exam", "wedding", "party", "race", "dentist appointment", "school trip")
TURNS = ("does not flip", "flips")


def last_letter(draw: Draw, variant: str) -> Draft:
    """The last letter of a word, or the last letters of two words joined."""
    if variant == "one":
        word = draw.pick(WORDS)  # no names: two words joined give away the last letter of each
        asked = f'What is the last letter of the word "{word}"?'
        return Draft(
            key=word, question=asked, answer=word[-1], working=f"{word} ends in {word[-1]}."
        )
    words = [draw.pick(NAMES), draw.pick(SURNAMES)]
    answer = "".join(word[-1] for word in words)
    ends = [f"{word} ends in {word[-1]}" for word in words]
    return Draft(
        key=" ".join(words),
        question=f'Take the last letter of each word in "{" ".join(words)}" and join them.',
        answer=answer,
        working=f"{listing(ends)}.",
    )


def coin_flip(draw: Draw, variant: str) -> Draft:
    """Whether a coin that people flip or leave shows the side it began with."""
    people = draw.sample(NAMES, draw.integer(2, 4))
    flips = [draw.integer(0, 1) for _ in people]
    if (sum(flips) % 2 == 0) != (variant == "yes"):
        flips[-1] = 1 - flips[-1]
    side = draw.pick(("heads", "tails"))
    told = " ".join(f"{name} {TURNS[flip]} the coin." for name, flip in zip(people, flips))
    count = sum(flips)
    flippers = {0: "Nobody flips", 1: "1 person flips"}.get(count, f"{count} people flip")
    parity = "even" if count % 2 == 0 else "odd"
    result = "still" if variant == "yes" else "no longer"
    return Draft(
        key=" ".join(sorted(f"{name} {flip}" for name, flip in zip(people, flips))),
        question=f"A coin is {side} up. {told} Is the coin still {side} up? Answer yes or no.",
        answer=variant,
        working=f"{flippers} the coin. {count} is {parity}, so the coin is {result} {side} up.",
    )


def reverse_words(draw: Draw, variant: str) -> Draft:
    """Words in the opposite order."""
    words = draw.sample(WORDS, {"two": 2, "three": 3}[variant])
    return Draft(
        key=" ".join(words),
        question=f"Write these words in the opposite order: {' '.join(words)}",
        answer=" ".join(words[::-1]),
        working=f'The last word is "{words[-1]}".',
    )


def sort_words(draw: Draw, variant: str) -> Draft | None:
    """Words in alphabetical order."""
    words = draw.sample(WORDS, {"two": 2, "three": 3}[variant])
    ordered = sorted(words)
    letters = [word[0] for word in ordered]
    if len(set(letters)) < len(letters):
        return None
    return Draft(
        key=" ".join(ordered),
        question=f"Put these words in alphabetical order: {' '.join(words)}",
        answer=" ".join(ordered),
        working=f"The letter {' comes before '.join(letters)}.",
    )


def sequence(draw: Draw, variant: str) -> Draft:
    """The next item of a sequence of numbers or letters.

    The key is the whole progression, in both directions, for a sequence may be part of another.
    """
    count = draw.integer(4, 6)
    if variant == "letters":
        step = draw.integer(1, 4)
        start = draw.integer(0, 25 - step * (count - 1))
        items = [chr(ord("A") + start + step * index) for index in range(count)]
        sign = draw.pick(("plus", "minus"))
        items = items[:: 1 if sign == "plus" else -1]
        key = f"letters {step} {start % step}"
        rule = f"{items[-2]} {sign} {step} is {items[-1]}."
    elif variant == "growing":
        start, factor = draw.integer(1, 40), draw.integer(2, 3)
        items = [str(start * factor**index) for index in range(count)]
        key = f"times {factor} {_without(factor, start)}"
        rule = f"{items[-2]} * {factor} = {items[-1]}."
    else:
        step = draw.pick((1, 2, 3, 4, 5, 10, 20, 25, 50, 100)) * (-1 if variant == "down" else 1)
        start = draw.integer(1, 40) * draw.pick((1, abs(step)))
        start -= min(step, 0) * count
        items = [str(start + step * index) for index in range(count)]
        key = f"{abs(step)} {start % abs(step)}"
        rule = f"{items[-2]} {'-' if step < 0 else '+'} {abs(step)} = {items[-1]}."
    *shown, answer = items
    return Draft(
        key=key,
        question=f"What comes next in this sequence: {', '.join(shown)}, ...?",
        answer=answer,
        working=rule,
    )


def calendar(draw: Draw, variant: str) -> Draft:
    """The weekday or month a little later or earlier."""
    unit, direction = variant.split("_")
    cycle = {"day": DAYS, "month": MONTHS}[unit]
    now, count = draw.integer(0, len(cycle) - 1), draw.integer(1, 4)
    passed = [
        cycle[(now + (-step if direction == "back" else step)) % len(cycle)]
        for step in range(1, count + 1)
    ]
    name, event = draw.pick(NAMES), draw.pick(EVENTS)
    units = f"{count} {unit}" + ("s" if count > 1 else "")
    asked = {
        "day_on": f"Today is {cycle[now]}. {name}'s {event} is in {units}. Which day of the week "
        "is that?",
        "day_back": f"Today is {cycle[now]}. {name}'s {event} was {units} ago. Which day of the "
        "week was that?",
        "month_on": f"It is {cycle[now]}. {name}'s {event} is in {units}. Which month is that?",
        "month_back": f"It is {cycle[now]}. {name}'s {event} was {units} ago. Which month was "
        "that?",
    }
    return Draft(
        key=f"{variant} {cycle[now]} {count}",
        question=asked[variant],
        answer=passed[-1],
        working=f"From {cycle[now]} the {unit}s are {', '.join(passed)}.",
    )


def letter_count(draw: Draw, variant: str) -> Draft:
    """How often a letter occurs in two words."""
    words = draw.sample(WORDS, 2)
    text = " ".join(words)
    wanted = {"one": 1, "two": 2, "three": 3}[variant]
    letters = sorted({letter for letter in text if letter != " " and text.count(letter) == wanted})
    if not letters:
        return None
    letter = draw.pick(letters)
    counts = [word.count(letter) for word in words]
    parts = [f'"{word}" has {count}' for word, count in zip(words, counts)]
    return Draft(
        key=f"{letter} {' '.join(sorted(words))}",
        question=f'How many times does the letter "{letter}" occur in "{text}"?',
        answer=str(wanted),
        working=_sentence(f"{listing(parts)}, which makes {wanted}."),
    )


def swaps(draw: Draw, variant: str) -> Draft:
    """Who holds what after people swap things."""
    people = draw.sample(NAMES, 3)
    things = [thing.removesuffix("s") for thing in draw.sample(THINGS[:9], 3)]
    holds = dict(zip(people, things))
    start = listing([f"{name} has a {thing}" for name, thing in holds.items()])
    told, working = [], []
    for index in range({"two": 2, "three": 3}[variant]):
        first, second = draw.sample(people, 2)
        holds[first], holds[second] = holds[second], holds[first]
        told.append(f"{('First', 'Then', 'Finally')[index]} {first} and {second} swap.")
        working.append(
            f"After swap {index + 1}, {first} has the {holds[first]} and {second} has the "
            f"{holds[second]}."
        )
    asked = draw.pick(people)
    return Draft(
        key=f"{start} {told} {asked}",
        question=f"{start}. {' '.join(told)} What does {asked} have at the end?",
        answer=holds[asked],
        working=f"{' '.join(working)} At the end {asked} has the {holds[asked]}.",
    )


def instruction(draw: Draw, variant: str) -> Draft:
    """Output in a required form; checked with its case."""
    word = draw.pick(WORDS)
    if variant == "repeat":
        count = draw.integer(2, 4)
        answer = " ".join([word] * count)
        asked = f'Repeat the word "{word}" {count} times.'
    elif variant == "capital":
        answer = word.capitalize()
        asked = f'Write the word "{word}" with a capital first letter.'
    elif variant == "pick":
        words = draw.sample(WORDS, 3)
        place = draw.integer(0, 2)
        answer = words[place]
        order = ("first", "second", "third")[place]
        asked = f"Answer with only the {order} word of this list: {', '.join(words)}"
    else:
        answer = f"[{word}]"
        asked = f'Write the word "{word}" in square brackets.'
    return Draft(key=asked, question=asked, answer=answer, working="")


def _without(factor: int, number: int) -> int:
    """``number`` divided by ``factor`` as often as it goes."""
    while number % factor == 0:
        number //= factor
    return number


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _kind(answer_type: str, draft, *variants: str, version: int = 1) -> Kind:
    return Kind(answer_type=answer_type, variants=variants, draft=draft, version=version)


KINDS = {
    "last_letter": _kind("text", last_letter, "one", "two", version=2),
    "coin_flip": _kind("text", coin_flip, "yes", "no", version=2),
    "reverse_words": _kind("text", reverse_words, "two", "three"),
    "sort_words": _kind("text", sort_words, "two", "three"),
    "sequence": _kind("text", sequence, "up", "down", "growing", "letters", version=2),
    "calendar": _kind("text", calendar, "day_on", "day_back", "month_on", "month_back"),
    "letter_count": _kind("number", letter_count, "one", "two", "three", version=2),
    "swaps": _kind("text", swaps, "two", "three"),
    "instruction": _kind("exact", instruction, "repeat", "capital", "pick", "brackets"),
}
