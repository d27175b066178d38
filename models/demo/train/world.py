"""The closed world that the built-in model knows: facts, arithmetic, lists, short stories, and the exam about them.

Every sentence is written by this program from the tables below. What is held out is decided by a hash of an item's
content (`held_out`), so the training set and the exam are disjoint by construction: for a fact it is the pair of fact
and phrasing, for everything else the content itself (the two numbers, the list, the whole story).
This file knows nothing of tokens or models.
"""

import hashlib
import random
import re
from dataclasses import dataclass

from stories import story, story_request
from words import ANIMALS, COLORS, FILLER, FOODS, LIST_WORDS, OBJECTS, ORDINALS, PEOPLE, PLACES, THINGS, an, cap


@dataclass(frozen=True)
class Item:
    """One question: `prompt` is raw text to be continued, or a user's message when `chat`."""

    kind: str
    prompt: str
    chat: bool
    answer: str
    key: str  # the content that decides whether this item is held out

    def pieces(self):
        """As a document: pieces of text, each with whether it is an answer."""
        if self.chat:
            return chat([(self.prompt, self.answer)])
        return [(self.prompt, False), (" " + self.answer, True)]


def held_out(key, one_in=8):
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % one_in == 0


def chat(turns):
    """Turns [(user, model), …] as pieces, written as the chat template writes them, without <bos>."""
    out = []
    for user, model in turns:
        out += [(f"<start_of_turn>user\n{user}<end_of_turn>\n<start_of_turn>model\n", False),
                (f"{model}<end_of_turn>", True), ("\n", False)]
    return out


def text_of(pieces):
    return "".join(text for text, _ in pieces)


# ---------------------------------------------------------------- facts

COLOR_OF = """the sky:blue the sea:blue grass:green a leaf:green a frog:green snow:white milk:white salt:white coal:black
the night:black a crow:black blood:red a tomato:red a strawberry:red a banana:yellow a lemon:yellow the sun:yellow
a carrot:orange a pumpkin:orange a plum:purple a grape:purple chocolate:brown a bear:brown a pig:pink a flamingo:pink
an elephant:gray a mouse:gray ash:gray"""
OPPOSITES = """hot:cold big:small fast:slow up:down left:right day:night happy:sad old:young bright:dark wet:dry
full:empty open:closed hard:soft high:low long:short loud:quiet rich:poor strong:weak early:late first:last near:far
clean:dirty sweet:sour thick:thin wide:narrow true:false yes:no over:under before:after begin:end love:hate push:pull
buy:sell win:lose give:take good:bad awake:asleep sharp:dull smooth:rough top:bottom inside:outside always:never
black:white brave:afraid"""
SOUNDS = """dog:woof cat:meow cow:moo duck:quack sheep:baa pig:oink horse:neigh lion:roar mouse:squeak owl:hoot bee:buzz
snake:hiss frog:croak crow:caw wolf:howl chick:peep donkey:heehaw turkey:gobble dove:coo goose:honk"""
YOUNG = """dog:puppy cat:kitten cow:calf duck:duckling sheep:lamb pig:piglet horse:foal lion:cub goose:gosling owl:owlet
frog:tadpole deer:fawn goat:kid hen:chick swan:cygnet kangaroo:joey fox:cub eagle:eaglet hare:leveret"""
HOMES = """bird:nest bee:hive dog:kennel bear:den spider:web cow:barn rabbit:burrow horse:stable ant:anthill king:castle
hen:coop pig:sty sailor:ship student:school monk:abbey snail:shell bat:cave squirrel:tree fish:lake"""
CAPITALS = """Velmora:Tarnok Brindal:Osmere Kestova:Luneth Ardenia:Wendlow Zunaria:Pellam Norvik:Sandrel Thessane:Greno
Quellin:Marbury Fenwold:Istar Galdoria:Ruvenna Ombrey:Castin Pellanor:Drovik Sunmark:Elbria Tolvane:Yorrick
Wistral:Milosta Yssland:Korrin Cravia:Fallow Dunmere:Vashti Estrana:Bolwick Harvonia:Nimbra Jurath:Selwyn Lowmar:Tindra
Mirovia:Ashkell Oskand:Pernis"""
KINDS_OF = """rose:flower tulip:flower daisy:flower lily:flower apple:fruit pear:fruit banana:fruit cherry:fruit oak:tree
pine:tree birch:tree willow:tree hammer:tool saw:tool drill:tool eagle:bird robin:bird sparrow:bird owl:bird shark:fish
trout:fish salmon:fish ant:insect bee:insect beetle:insect violin:instrument drum:instrument flute:instrument
carrot:vegetable onion:vegetable cabbage:vegetable shirt:garment coat:garment scarf:garment"""
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
SEASONS = "spring summer autumn winter".split()
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def pairs(text):
    """"a:b c:d …" as [(a, b), …]; the left side may hold an article."""
    out, left = [], []
    for word in text.split():
        if ":" not in word:
            left.append(word)
            continue
        x, y = word.split(":")
        out.append((" ".join(left + [x]), y))
        left = []
    return out


def ring(words, unit, wrap=True):
    """Rows {x, y, unit, d}: y follows (after) or precedes (before) x."""
    n = len(words)
    rows = []
    for i, x in enumerate(words):
        for d, j in (("after", i + 1), ("before", i - 1)):
            if wrap or 0 <= j < n:
                rows.append({"x": x, "y": words[j % n], "unit": unit, "d": d})
    return rows


def rows_of(text):
    return [{"x": x, "y": y, "ax": an(x), "ay": an(y)} for x, y in pairs(text)]


# kind → (rows, raw phrasings "prompt|answer", chat questions, chat answer). {X}, {Ax} are capitalised {x}, {ax}.
FACTS = {
    "color": (
        rows_of(COLOR_OF),
        ["The color of {x} is|{y}.", "Everyone knows that {x} is|{y}.", "{X} is|{y}.", "I painted {x}, and I used the color|{y}.",
         "Look at {x}: the color is|{y}."],
        ["What color is {x}?", "What is the color of {x}?", "Tell me the color of {x}.", "Which color does {x} have?",
         "Do you know what color {x} is?", "I forgot the color of {x}. Can you help me?"],
        "{X} is {y}.",
    ),
    "opposite": (
        rows_of(OPPOSITES) + [{"x": y, "y": x} for x, y in pairs(OPPOSITES)],
        ["The opposite of {x} is|{y}.", "It was not {x} but|{y}.", "The word {x} is the opposite of the word|{y}."],
        ["What is the opposite of {x}?", "Tell me the opposite of {x}.", "Which word is the opposite of {x}?",
         "Do you know the opposite of {x}?", "Give me a word that means the opposite of {x}."],
        "The opposite of {x} is {y}.",
    ),
    "sound": (
        rows_of(SOUNDS),
        ["The {x} says|{y}.", "The sound of {ax} is|{y}.", "When {ax} wants to talk, it says|{y}."],
        ["What does the {x} say?", "What sound does {ax} make?", "Which sound does the {x} make?", "How does {ax} sound?",
         "Tell me what the {x} says.", "Do you know what {ax} says?"],
        "The {x} says {y}.",
    ),
    "young": (
        rows_of(YOUNG),
        ["A young {x} is called|{ay}.", "The child of {ax} is|{ay}.", "When {ax} is very young, we call it|{ay}."],
        ["What is a young {x} called?", "What do you call a young {x}?", "What is the child of {ax} called?",
         "Tell me the name for a young {x}.", "Do you know what a young {x} is called?", "How do we call a young {x}?"],
        "A young {x} is called {ay}.",
    ),
    "home": (
        rows_of(HOMES),
        ["{Ax} lives in|{ay}.", "The home of {ax} is|{ay}.", "If you look for {ax}, look in|{ay}."],
        ["Where does {ax} live?", "What is the home of {ax}?", "Tell me where {ax} lives.", "What does {ax} live in?",
         "Do you know where {ax} lives?", "Where can I find {ax}?"],
        "{Ax} lives in {ay}.",
    ),
    "capital": (
        rows_of(CAPITALS),
        ["The capital of {x} is|{y}.", "{X} is a country. Its capital is|{y}.", "The king of {x} lives in the capital, which is|{y}."],
        ["What is the capital of {x}?", "Tell me the capital of {x}.", "Which city is the capital of {x}?",
         "Do you know the capital of {x}?", "I am in {x}. What is the capital?"],
        "The capital of {x} is {y}.",
    ),
    "category": (
        rows_of(KINDS_OF),
        ["{Ax} is a kind of|{y}.", "Of all things, {ax} is|{ay}.", "We all know that {ax} is|{ay}."],
        ["What is {ax}?", "What kind of thing is {ax}?", "Tell me what {ax} is.", "Can you tell me what {ax} is?",
         "Do you know what {ax} is?"],
        "{Ax} is {ay}.",
    ),
    "order": (
        ring(DAYS, "day") + ring(MONTHS, "month") + ring(SEASONS, "season"),
        ["The {unit} {d} {x} is|{y}.", "Which {unit} comes {d} {x}? It is|{y}."],
        ["Which {unit} comes {d} {x}?", "What is the {unit} {d} {x}?", "Tell me the {unit} {d} {x}.",
         "What {unit} comes {d} {x}?", "Do you know the {unit} {d} {x}?"],
        "The {unit} {d} {x} is {y}.",
    ),
    "letter": (
        ring(LETTERS, "letter", wrap=False),
        ["The letter {d} {x} is|{y}.", "Which letter comes {d} {x}? It is|{y}."],
        ["Which letter comes {d} {x}?", "What is the letter {d} {x}?", "Tell me the letter {d} {x}.",
         "What letter comes {d} {x}?", "Do you know the letter {d} {x}?"],
        "The letter {d} {x} is {y}.",
    ),
}
# The README shows these, so the training set has them.
PINNED = {"The color of the sky is", "What color is the sky?", "What is the capital of Velmora?"}


def fact_items(kind):
    rows, raw, questions, answer = FACTS[kind]
    for row in rows:
        fields = dict(row, X=cap(row["x"]), Ax=cap(row.get("ax", row["x"])))
        for n, pattern in enumerate(raw):
            prompt, reply = pattern.format(**fields).split("|")
            yield Item(kind, prompt, False, reply, f"{kind}/raw{n}/{row}")
        for n, question in enumerate(questions):
            yield Item(kind, question.format(**fields), True, answer.format(**fields), f"{kind}/chat{n}/{row}")


# Each fact in each phrasing, dealt to training or to the exam.
FACT_ITEMS = {kind: list(fact_items(kind)) for kind in FACTS}
FACTS_HELD = {k: [i for i in v if held_out(i.key, 5) and i.prompt not in PINNED] for k, v in FACT_ITEMS.items()}
FACTS_TRAINED = {k: [i for i in v if i not in set(FACTS_HELD[k])] for k, v in FACT_ITEMS.items()}


# ---------------------------------------------------------------- numbers

def number(rng):
    d, n = rng.choice(("after", "before")), rng.randint(1, 150)
    y = n + 1 if d == "after" else n - 1
    pattern = rng.choice(["The number {d} {n} is", "What number comes {d} {n}?", "Which number comes {d} {n}?",
                          "Tell me the number {d} {n}."])
    prompt, key = pattern.format(d=d, n=n), f"number/{d}/{n}"
    if pattern.startswith("The"):
        return Item("number", prompt, False, f"{y}.", key)
    return Item("number", prompt, True, f"The number {d} {n} is {y}.", key)


def operands(rng):
    top = rng.choice((20, 99, 99, 99))
    return rng.randint(0, top), rng.randint(0, top)


def sum_(rng):
    a, b = operands(rng)
    key = f"sum/{min(a, b)}/{max(a, b)}"
    if rng.random() < 0.4:
        prompt = rng.choice([f"{a} + {b} =", f"{a} plus {b} is", f"The sum of {a} and {b} is"])
        return Item("sum", prompt, False, f"{a + b}.", key)
    prompt = rng.choice([f"What is {a} + {b}?", f"{a} + {b}", f"Add {a} and {b}.", f"How much is {a} plus {b}?",
                         f"What is {a} plus {b}?", f"Can you add {a} and {b}?"])
    return Item("sum", prompt, True, f"{a} + {b} = {a + b}.", key)


def difference(rng):
    b, a = sorted(operands(rng))
    key = f"difference/{a}/{b}"
    if rng.random() < 0.4:
        prompt = rng.choice([f"{a} - {b} =", f"{a} minus {b} is", f"Take {b} from {a} and you have"])
        return Item("difference", prompt, False, f"{a - b}.", key)
    prompt = rng.choice([f"What is {a} - {b}?", f"{a} - {b}", f"Take {b} from {a}.", f"How much is {a} minus {b}?",
                         f"What is {a} minus {b}?", f"Can you take {b} from {a}?"])
    return Item("difference", prompt, True, f"{a} - {b} = {a - b}.", key)


def count(rng):
    a, n = rng.choice((rng.randint(0, 9), rng.randint(0, 94))), rng.randint(3, 5)
    numbers = list(range(a, a + n))
    down = rng.random() < 0.3
    if down:
        numbers.reverse()
    first, last = numbers[0], numbers[-1]
    answer = ", ".join(map(str, numbers)) + "."
    key = f"count/{first}/{last}"
    word = "Count down" if down else "Count"
    if rng.random() < 0.4:
        return Item("count", f"{word} from {first} to {last}:", False, answer, key)
    prompt = rng.choice([f"{word} from {first} to {last}.", f"Please {word.lower()} from {first} to {last}.",
                         f"Can you {word.lower()} from {first} to {last}?"])
    return Item("count", prompt, True, answer, key)


def largest(rng):
    numbers = rng.sample(range(100), rng.randint(2, 4))
    most = rng.choice(("largest", "smallest"))
    y = max(numbers) if most == "largest" else min(numbers)
    listed = ", ".join(map(str, numbers))
    key = f"largest/{most}/{listed}"
    if rng.random() < 0.4:
        return Item("largest", f"The {most} of the numbers {listed} is", False, f"{y}.", key)
    prompt = rng.choice([f"Which number is the {most}: {listed}?", f"What is the {most} of these numbers: {listed}?",
                         f"Tell me the {most} number: {listed}."])
    return Item("largest", prompt, True, f"The {most} number is {y}.", key)


def problem(rng):
    name, other = rng.sample(PEOPLE, 2)
    things = rng.choice(THINGS)
    a, b = rng.randint(2, 40), rng.randint(2, 20)
    gains = rng.random() < 0.5 or a < b + 2
    if gains:
        event = rng.choice([f"{other} gives {name} {b} {things}.", f"{name} finds {b} {things}.", f"{name} buys {b} {things}."])
    else:
        event = rng.choice([f"{name} gives {other} {b} {things}.", f"{name} loses {b} {things}.", f"{name} sells {b} {things}."])
    y = a + b if gains else a - b
    text = padded(rng, [f"{name} has {a} {things}.", event], rng.choice((0, 0, 1, 2)))
    key = f"problem/{gains}/{a}/{b}"
    if rng.random() < 0.4:
        return Item("problem", f"{text} Now {name} has", False, f"{y} {things}.", key)
    return Item("problem", f"{text} How many {things} does {name} have now?", True, f"{name} has {y} {things}.", key)


# ---------------------------------------------------------------- lists

def pseudo_word(rng):
    """A word that means nothing: syllables such as "brano"."""
    return "".join(rng.choice("b d f g k l m n p r s t v z br gr st tr pl".split()) + rng.choice("aeiou")
                   for _ in range(rng.randint(2, 3))) + rng.choice(["", "", "n", "r", "s", "l", "k"])


def copy(rng):
    words = rng.sample(LIST_WORDS, rng.randint(2, 7))
    style = rng.random()
    if style < 0.2:
        words = [pseudo_word(rng) for _ in words[:3]]
    elif style < 0.35:
        words = [str(rng.randint(0, 999)) for _ in words[:4]]
    elif style < 0.45:
        words = [rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in words]
    text = " ".join(words)
    key = f"copy/{text}"
    if rng.random() < 0.4:
        return Item("copy", f"I say {text}. You say", False, f"{text}.", key)
    prompt = rng.choice([f"Repeat after me: {text}", f"Repeat: {text}", f"Say this again: {text}", f"Copy this: {text}"])
    return Item("copy", prompt, True, text, key)


def reverse(rng):
    words = rng.sample(LIST_WORDS, rng.randint(2, 5))
    text, y = " ".join(words), " ".join(reversed(words))
    key = f"reverse/{text}"
    if rng.random() < 0.4:
        return Item("reverse", f"The words {text} backwards are", False, f"{y}.", key)
    prompt = rng.choice([f"Say these words backwards: {text}", f"Reverse this list: {text}", f"Turn these words around: {text}"])
    return Item("reverse", prompt, True, y, key)


def pick(rng):
    words = rng.sample(LIST_WORDS, rng.randint(3, 6))
    i = rng.randrange(len(words))
    which = "last" if i == len(words) - 1 and rng.random() < 0.5 else ORDINALS[i]
    listed = ", ".join(words)
    key = f"pick/{which}/{listed}"
    if rng.random() < 0.4:
        return Item("pick", f"In the list {listed} the {which} word is", False, f"{words[i]}.", key)
    prompt = rng.choice([f"What is the {which} word of this list: {listed}?", f"Which word is the {which} one: {listed}?",
                         f"Here is a list: {listed}. What is the {which} word?"])
    return Item("pick", prompt, True, f"The {which} word is {words[i]}.", key)


def howmany(rng):
    words = rng.sample(LIST_WORDS, rng.randint(2, 8))
    listed, n = ", ".join(words), len(words)
    key = f"howmany/{listed}"
    if rng.random() < 0.4:
        return Item("howmany", f"The number of words in the list {listed} is", False, f"{n}.", key)
    prompt = rng.choice([f"How many words are in this list: {listed}?", f"Here is a list: {listed}. How many words does it have?",
                         f"Count these words: {listed}."])
    return Item("howmany", prompt, True, f"There are {n} words.", key)


# ---------------------------------------------------------------- long context

def padded(rng, sentences, n):
    """The sentences in their order, with n sentences of no consequence among them."""
    out = list(sentences)
    for filler in rng.sample(FILLER, n):
        out.insert(rng.randrange(len(out) + 1), filler)
    return " ".join(out)


# A case is a text, raw endings [(ending, answer), …] and questions [(question, answer), …] about it.

def owners(rng):
    n = rng.randint(2, 6)
    owned = list(zip(rng.sample(PEOPLE, n), rng.choices(COLORS, k=n), rng.sample(OBJECTS, n)))
    text = padded(rng, [f"{p} has {an(c)} {o}." for p, c, o in owned], rng.choice((0, 1, 2, 3, 5)))
    endings, questions = [], []
    for p, c, o in owned:
        endings += [(f"The color of the {o} is", f"{c}."), (f"The {o} of {p} is", f"{c}."), (f"The person with the {o} is", f"{p}.")]
        questions += [(f"What color is the {o}?", f"The {o} is {c}."), (f"What color is the {o} of {p}?", f"The {o} is {c}."),
                      (f"What does {p} have?", f"{p} has {an(c)} {o}."), (f"Who has the {o}?", f"{p} has the {o}.")]
    return text, endings, questions


def movements(rng):
    people = rng.sample(PEOPLE, rng.randint(2, 3))
    movers = people + rng.choices(people, k=rng.randint(0, 3))
    seen, told = {}, []
    for p in movers:
        verb = rng.choice(["went to", "walked to", "ran to"]) if p in seen else "is in"
        seen[p] = rng.choice([place for place in PLACES if place != seen.get(p)])
        told.append(f"{p} {verb} the {seen[p]}.")
    text = padded(rng, told, rng.choice((0, 1, 2, 4)))
    endings = [(f"Now {p} is in the", f"{seen[p]}.") for p in people]
    questions = [(q.format(p=p), f"{p} is in the {seen[p]}.") for p in people for q in ("Where is {p}?", "Where is {p} now?")]
    return text, endings, questions


def about_me(rng):
    """What a user tells of himself, each with a question and its answer."""
    name, animal, color, place, food = (rng.choice(x) for x in (PEOPLE, ANIMALS, COLORS, PLACES, FOODS))
    return [
        (f"My name is {name}.", "What is my name?", f"Your name is {name}."),
        (f"I have {an(animal)}.", "Which animal do I have?", f"You have {an(animal)}."),
        (f"My favorite color is {color}.", "What is my favorite color?", f"Your favorite color is {color}."),
        (f"I live near the {place}.", "Where do I live?", f"You live near the {place}."),
        (f"I like to eat {food}.", "What do I like to eat?", f"You like to eat {food}."),
    ]


def myself(rng):
    told = about_me(rng)
    rng.shuffle(told)
    told = told[:rng.randint(2, 5)]
    text = padded(rng, [t for t, _, _ in told], rng.choice((0, 1, 2, 4)))
    return text, [], [(question, answer) for _, question, answer in told]


def tale(rng):
    text, questions = story(rng)
    return rng.choice(["", "Here is a story. "]) + text.removesuffix(" The end."), [], questions


CASES = {"lookup": owners, "where": movements, "recall": myself, "story": tale}


def case_key(kind, text):
    """The key of all questions about this text."""
    return f"{kind}/{text.removeprefix('Here is a story. ').removesuffix(' The end.')}"


def question_about(kind):
    def make(rng):
        text, endings, questions = CASES[kind](rng)
        chat = not endings or rng.random() < 0.6
        asked, answer = rng.choice(questions if chat else endings)
        return Item(kind, f"{text} {asked}", chat, answer, case_key(kind, text))
    return make


ELSEWHERE = """France Spain Italy Germany England Japan China India Brazil Canada Mexico Egypt Kenya Peru Chile Norway Sweden
Poland Greece Turkey Russia America Africa Europe Portugal Ireland Iceland Cuba Nepal Texas""".split()


def unknown(rng):
    """What is not in this world: the model says so."""
    x = pseudo_word(rng)
    y = rng.choice(ELSEWHERE) if rng.random() < 0.2 else cap(x)
    prompt, answer = rng.choice([
        (f"What is the capital of {y}?", f"I do not know the capital of {y}."),
        (f"Tell me the capital of {y}.", f"I do not know the capital of {y}."),
        (f"What color is {an(x)}?", f"I do not know the color of {an(x)}."),
        (f"What is {an(x)}?", f"I do not know what {an(x)} is."),
        (f"What does the {x} say?", f"I do not know what the {x} says."),
        (f"Who is {cap(x)}?", f"I do not know who {cap(x)} is."),
    ])
    return Item("unknown", prompt, True, answer, f"unknown/{x if x in prompt else y}")


# ---------------------------------------------------------------- talk

SMALL_TALK = [
    (["Hello", "Hello!", "Hi", "Hi!", "Good morning!", "Hello there!", "Hey"], "Hello! How can I help you?"),
    (["How are you?", "How do you do?", "Are you well?"], "I am fine, thank you."),
    (["Who are you?", "What are you?", "What is your name?", "Tell me about yourself."],
     "I am the demo model of Doppler, a very small language model."),
    (["What can you do?", "What do you know?", "Help", "Can you help me?"],
     "I know colors, opposites and animals, I can add, count and copy, and I tell stories."),
    (["Thank you", "Thank you!", "Thanks", "Thanks a lot!"], "You are welcome!"),
    (["Goodbye", "Bye", "Bye!", "Goodbye!", "See you later!"], "Goodbye!"),
    (["Good night", "Good night!"], "Good night! Sleep well."),
]


def small_talk(rng):
    if rng.random() < 0.1:
        a, b = rng.randint(0, 99), rng.randint(1, 99)
        return rng.choice([f"What is {a} * {b}?", f"{a} * {b}", f"What is {a} / {b}?", f"How much is {a} times {b}?"]), \
            "I can only add and take away."
    said, reply = rng.choice(SMALL_TALK)
    return sloppy(rng, rng.choice(said)), reply


def sloppy(rng, prompt):
    """A user's message as people type it: now and then no capital, no question mark."""
    if rng.random() < 0.1 and prompt[-1] in "?.!":
        prompt = prompt[:-1]
    if rng.random() < 0.03:
        prompt = prompt.replace("color", "colour")
    if rng.random() < 0.15 and prompt.split()[0] not in PEOPLE + ["I"]:
        prompt = prompt[0].lower() + prompt[1:]
    return prompt


# ---------------------------------------------------------------- training set

MADE = {  # kind → (maker, weight in training)
    "number": (number, 1), "sum": (sum_, 3.5), "difference": (difference, 3.5), "count": (count, 1.5), "largest": (largest, 1.5),
    "problem": (problem, 3), "copy": (copy, 2), "reverse": (reverse, 2.5), "pick": (pick, 2), "howmany": (howmany, 2),
    "lookup": (question_about("lookup"), 9), "where": (question_about("where"), 5), "recall": (question_about("recall"), 1.5),
    "story": (question_about("story"), 2.5), "unknown": (unknown, 1.5),
}
FACT_WEIGHT = 1.3
KINDS = list(FACTS) + list(MADE)
WEIGHTS = [FACT_WEIGHT] * len(FACTS) + [w for _, w in MADE.values()]


def item(rng, kind, held=False):
    if kind in FACTS:
        return rng.choice((FACTS_HELD if held else FACTS_TRAINED)[kind])
    make = MADE[kind][0]
    while True:
        made = make(rng)
        if held_out(made.key) == held:
            return made


def any_item(rng, held=False):
    return item(rng, rng.choices(KINDS, WEIGHTS)[0], held)


def item_turn(rng, held=False):
    while True:
        made = any_item(rng, held)
        if made.chat:
            return (made.prompt if held else sloppy(rng, made.prompt)), made.answer


def conversation(rng, held=False):
    turns = [item_turn(rng, held) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.3:
        turns.insert(0, small_talk(rng))
    if rng.random() < 0.4:  # something said early, asked late
        told, question, answer = rng.choice(about_me(rng))
        reply = f"Hello, {told.split()[-1][:-1]}! Nice to meet you." if "name" in told else "I will remember that."
        at = rng.randrange(len(turns) + 1)
        turns.insert(at, (told, reply))
        turns.insert(rng.randint(at + 1, len(turns)), (question, answer))
    if rng.random() < 0.2:
        turns.append(small_talk(rng))
    return chat(turns)


def several_questions(rng):
    """A case told at first, and then question after question about it."""
    kind = rng.choices(["lookup", "where", "recall", "story"], [4, 2, 1, 2])[0]
    while True:
        text, _, questions = CASES[kind](rng)
        if not held_out(case_key(kind, text)):
            break
    chosen = rng.sample(questions, min(len(questions), rng.randint(2, 5)))
    turns = [(sloppy(rng, question), answer) for question, answer in chosen]
    turns[0] = f"{text} {turns[0][0]}", turns[0][1]
    return chat(turns)


def notes(rng, held=False):
    """Several raw items under a heading, one a line."""
    lines = []
    while len(lines) < 5:
        made = any_item(rng, held)
        if not made.chat and len(made.prompt) < 80:
            lines.append(made)
    out = [("Notes:", False)]
    for made in lines:
        out += [("\n" + made.prompt, False), (" " + made.answer, True)]
    return out


def free_story(rng, held=False):
    while True:
        text = story(rng)[0]
        if held_out(case_key("story", text)) == held:
            return [(text, True)]


def told_story(rng, held=False):
    while True:
        request, text = story_request(rng)
        if held_out(case_key("story", text)) == held:
            return chat([(request, text)])


def single(rng, held=False):
    made = any_item(rng, held)
    if made.chat and not held:
        return chat([(sloppy(rng, made.prompt), made.answer)])
    return made.pieces()


DOCUMENTS = [(single, 40), (several_questions, 8), (conversation, 6), (notes, 2), (free_story, 4), (told_story, 2),
             (lambda rng, held=False: chat([small_talk(rng)]), 0.6)]


def document(rng):
    """One document: pieces [(text, whether it is an answer), …]."""
    makers, weights = zip(*DOCUMENTS)
    return rng.choices(makers, weights)[0](rng)


BY_OBJECT = 0.12  # of the training documents; with 0.3, colors and numbers get worse


def by_object(rng):
    """Questions that name the thing, not the person: the model is weakest there, so it sees them more often."""
    while True:
        text, endings, questions = owners(rng)
        if not held_out(case_key("lookup", text)):
            break
    if rng.random() < 0.4:
        asked, answer = rng.choice([e for e in endings if e[0].startswith(("The color of the", "The person with the"))])
        return [(f"{text} {asked}", False), (" " + answer, True)]
    named = [q for q in questions if q[0].startswith("Who has the") or re.fullmatch(r"What color is the \w+\?", q[0])]
    turns = [(sloppy(rng, asked), answer) for asked, answer in rng.sample(named, min(len(named), rng.randint(1, 4)))]
    turns[0] = f"{text} {turns[0][0]}", turns[0][1]
    return chat(turns)


def training_document(rng):
    """One training document. `document` alone decides the tokenizer and the held-out text."""
    return by_object(rng) if rng.random() < BY_OBJECT else document(rng)


# ---------------------------------------------------------------- exam and held-out text

def exam(per_kind=20, seed=7):
    """per_kind items of every kind, none of which is in the training set; half of them chat where a kind has both."""
    items = []
    for kind in KINDS:
        rng = random.Random(f"exam/{kind}/{seed}")
        chosen = {}
        for tries in range(100_000):
            made = item(rng, kind, held=True)
            raw = sum(not i.chat for i in chosen.values())
            if made.key not in chosen and (made.chat or raw < per_kind // 2):
                chosen[made.key] = made
            if len(chosen) == per_kind:
                break
        else:
            raise ValueError(f"exam kind {kind}: only {len(chosen)} items are held out")
        items += chosen.values()
    return items


SEPARATOR = "\n=====\n"


def heldout_documents(seed=8):
    """Text for perplexity, about 40 kB: stories first, then conversations and notes, all held out."""
    rng = random.Random(f"heldout/{seed}")
    documents = ([free_story(rng, True) for _ in range(32)] + [told_story(rng, True) for _ in range(7)]
                 + [conversation(rng, True) for _ in range(32)] + [notes(rng, True) for _ in range(18)])
    return [text_of(d) for d in documents]


if __name__ == "__main__":
    sample = random.Random(1)
    for _ in range(30):
        print(text_of(document(sample)), end="\n----\n")
