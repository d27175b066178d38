"""Short stories: eight plots with a hero, a friend and a few things that happen, and questions that a story answers."""

from words import ANIMALS, BOYS, COLORS, FOODS, GIRLS, OBJECTS, PET_NAMES_HE, PET_NAMES_SHE, PLACES, an, cap


class Hero:
    def __init__(self, rng, animal=None, name=None):
        if animal is None and name is None and rng.random() < 0.3:
            self.he = rng.random() < 0.5
            self.kind, self.name = ("boy", rng.choice(BOYS)) if self.he else ("girl", rng.choice(GIRLS))
        else:
            self.kind = animal or rng.choice(ANIMALS)
            self.name = name or rng.choice(PET_NAMES_HE + PET_NAMES_SHE)
            self.he = self.name in PET_NAMES_HE
        self.home = rng.choice(PLACES)
        self.trait = rng.choice("little small young kind brave clever shy merry curious gentle".split())

    def sub(self):
        return "he" if self.he else "she"

    def obj(self):
        return "him" if self.he else "her"

    def pos(self):
        return "his" if self.he else "her"


def meeting(rng, h, f):
    who = f"{f.name} the {f.kind}" if f.kind not in ("boy", "girl") else f"{an(f.kind)} named {f.name}"
    return rng.choice([f"On the way {h.sub()} met {who}.", f"Then {who} came along.", f"Soon {h.sub()} met {who}."])


def lost(rng, h, f):
    c, o, place = rng.choice(COLORS), rng.choice(OBJECTS), rng.choice(PLACES)
    return [
        rng.choice([f"One day {h.name} lost {h.pos()} {c} {o}.", f"One morning {h.pos()} {c} {o} was gone."]),
        rng.choice([f"{cap(h.sub())} looked under the bed and behind the door, but it was not there.",
                    f"{cap(h.sub())} looked everywhere and began to cry."]),
        meeting(rng, h, f),
        rng.choice([f'"Have you seen my {o}?" asked {h.name}.', f'"I cannot find my {c} {o}," said {h.name}.']),
        f'"It is in the {place}," said {f.name}.',
        f"They ran to the {place} and found the {o}.",
        rng.choice([f"{h.name} was very happy.", f'"Thank you, {f.name}!" said {h.name}.']),
    ], [
        (f"What did {h.name} lose?", f"{h.name} lost {an(c)} {o}."),
        (f"Who helped {h.name}?", f"{f.name} helped {h.name}."),
        (f"Where was the {o}?", f"The {o} was in the {place}."),
    ]


def gift(rng, h, f):
    c, o = rng.choice(COLORS), rng.choice(OBJECTS)
    return [
        f"One day it was the birthday of {f.name}.",
        rng.choice([f"{h.name} wanted to give {f.obj()} something nice.", f"{h.name} thought about it all morning."]),
        f"{cap(h.sub())} went to the market and bought {an(c)} {o}.",
        rng.choice([f"In the evening {h.sub()} knocked on the door.", f"Then {h.sub()} walked to the house of {f.name}."]),
        f'"This {o} is for you," said {h.name}.',
        rng.choice([f"{f.name} laughed and danced with joy.", f'"It is the best gift of all," said {f.name}.']),
        "They ate cake until it was dark.",
    ], [
        (f"What did {h.name} buy?", f"{h.name} bought {an(c)} {o}."),
        ("Whose birthday was it?", f"It was the birthday of {f.name}."),
    ]


def storm(rng, h, f):
    food, place = rng.choice(FOODS), rng.choice(PLACES)
    return [
        rng.choice(["One night a storm came.", "One evening it began to snow."]),
        f"{f.name} was cold and could not go home to the {place}.",
        f'"Come in," said {h.name}, "it is warm here."',
        f"{cap(h.sub())} made a fire and gave {f.name} some {food}.",
        rng.choice(["They told each other stories all night.", "They sang songs until they fell asleep."]),
        "In the morning the sun was shining again.",
    ], [
        (f"What did {h.name} give {f.name}?", f"{h.name} gave {f.name} some {food}."),
        (f"Where was the home of {f.name}?", f"The home of {f.name} was in the {place}."),
    ]


def seed(rng, h, f):
    c, place, n = rng.choice(COLORS), rng.choice(PLACES), rng.randint(3, 9)
    return [
        f"One day {h.name} found a seed near the {place}.",
        rng.choice([f"{cap(h.sub())} put it into the ground.", f"{cap(h.sub())} planted it with great care."]),
        rng.choice([f"Every morning {h.sub()} gave it water.", f'"Nothing will grow," said {f.name}, but {h.name} waited.']),
        f"After {n} days {an(c)} flower grew there.",
        rng.choice([f"{f.name} came to see it.", f"{h.name} showed it to {f.name}."]),
        rng.choice(["It was the most beautiful flower in the world.", "They sat beside it all day long."]),
    ], [
        (f"What did {h.name} find?", f"{h.name} found a seed."),
        ("What color was the flower?", f"The flower was {c}."),
        ("How many days did it take?", f"It took {n} days."),
    ]


def race(rng, h, f):
    place = rng.choice(PLACES)
    why = rng.choice(["to sleep under a tree", "to eat some nuts", "to look at a cloud"])
    return [
        f"One day {h.name} and {f.name} ran a race to the {place}.",
        f"{h.name} was much faster.",
        f"But {h.sub()} stopped {why}.",
        f"{f.name} did not stop and was first at the {place}.",
        rng.choice([f'"Next time I will not stop," said {h.name}.', f'"You are slow but you never stop," said {h.name}.']),
        rng.choice(["They both laughed.", "Then they walked home together."]),
    ], [
        ("Who won the race?", f"{f.name} won the race."),
        ("Where did they run?", f"They ran to the {place}."),
        (f"Why did {h.name} stop?", f"{h.name} stopped {why}."),
    ]


def dark(rng, h, f):
    c = rng.choice(COLORS)
    return [
        rng.choice([f"{h.name} was afraid of the dark.", f"At night {h.name} could not sleep, because it was so dark."]),
        meeting(rng, h, f),
        f'"Take my {c} lamp," said {f.name}, "it will help you."',
        f"That night {h.name} put the lamp beside the bed.",
        rng.choice(["The light was warm and soft.", "Now the room looked small and friendly."]),
        f"{h.name} was not afraid any more.",
    ], [
        ("What color was the lamp?", f"The lamp was {c}."),
        (f"Who helped {h.name}?", f"{f.name} helped {h.name}."),
    ]


def share(rng, h, f):
    food, place = rng.choice(FOODS), rng.choice(PLACES)
    return [
        f"One day {h.name} sat in the {place} with some {food}.",
        f"{f.name} came and said that {f.sub()} was very hungry.",
        rng.choice([f"{h.name} had only a little, but {h.sub()} gave {f.obj()} half of it.",
                    f"{h.name} thought for a while and gave {f.obj()} half of it."]),
        rng.choice(["The next day", "A week later"]) + f" {h.name} was hungry and had no food.",
        f"Then {f.name} brought {h.obj()} a big basket full of {food}.",
        rng.choice(["Together they ate it all.", '"A friend never forgets," said ' + f.name + "."]),
    ], [
        (f"What did {h.name} share?", f"{h.name} shared some {food}."),
        (f"Where did {h.name} sit?", f"{h.name} sat in the {place}."),
        (f"Who brought {h.name} a basket?", f"{f.name} brought {h.name} a basket."),
    ]


def astray(rng, h, f):
    place, mark = h.home, rng.choice("river road bridge hill moon".split())
    return [
        f"One day {h.name} walked too far and could not find the way home to the {place}.",
        rng.choice(["It was getting dark.", "The trees were tall and the wind was cold."]),
        meeting(rng, h, f),
        f'"Do not cry," said {f.name}, "just follow the {mark}."',
        f"{h.name} followed the {mark} for a long time.",
        f"At last {h.sub()} saw the {place}.",
        rng.choice(["How good it was to be home!", f'"I will never go so far again," said {h.name}.']),
    ], [
        (f"What did {h.name} follow?", f"{h.name} followed the {mark}."),
        (f"Who helped {h.name}?", f"{f.name} helped {h.name}."),
        (f"Where was the home of {h.name}?", f"The home of {h.name} was in the {place}."),
    ]


PLOTS = [lost, gift, storm, seed, race, dark, share, astray]


def story(rng, animal=None, name=None):
    """A story and the questions it answers: (text, [(question, answer), …])."""
    h = Hero(rng, animal, name)
    f = Hero(rng)
    while f.name == h.name or f.kind == h.kind:
        f = Hero(rng)
    start = rng.choice([
        f"Once upon a time there was a {h.trait} {h.kind} named {h.name}.",
        f"Once upon a time there was a {h.trait} {h.kind} named {h.name}.",
        f"Once upon a time a {h.trait} {h.kind} named {h.name} lived near the {h.home}.",
        f"There once was a {h.trait} {h.kind} named {h.name}.",
        f"{h.name} was a {h.trait} {h.kind} who lived near the {h.home}.",
    ])
    friend = rng.choice([f"{cap(h.pos())} best friend was a {f.trait} {f.kind} named {f.name}.",
                         f"{cap(h.sub())} had a friend, a {f.trait} {f.kind} named {f.name}."])
    plot = rng.choice(PLOTS)
    body, questions = plot(rng, h, f)
    if plot in (lost, dark, astray):  # the friend is met in the story
        friend = rng.choice(["Everybody liked " + h.obj() + ".", f"{cap(h.sub())} liked to sing and to play."])
    ending = rng.choice(["They were friends from that day on.", "And they lived happily ever after.", "The end.",
                         f"That night {h.name} slept very well."])
    return " ".join([start, friend, *body, ending]), questions


OTHER_ANIMALS = """dragon lion tiger elephant monkey whale snake turtle bee eagle hare deer swan robot monster dwarf giant witch
unicorn penguin camel zebra panda crab squirrel hedgehog beaver otter badger""".split()


def story_request(rng):
    """(user, model) for a story on demand."""
    animal, name = rng.choice(ANIMALS + OTHER_ANIMALS), rng.choice(PET_NAMES_HE + PET_NAMES_SHE)
    request, told = rng.choice([
        (f"Tell me a story about {an(animal)}.", (animal, None)),
        (f"Tell me a story about {an(animal)} named {name}.", (animal, name)),
        ("Tell me a story.", (None, None)),
        (f"Please tell me a story about {name} the {animal}.", (animal, name)),
    ])
    return request, story(rng, *told)[0]
