"""Word tables of the closed world, shared by its questions and its stories."""


def cap(text):
    return text[0].upper() + text[1:]


def an(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


BOYS = "Tom Ben Sam Max Leo Jack Paul Finn Hugo Adam Carl Dan Noah Otto".split()
GIRLS = "Ann Eva Mia Lily Zoe Sara Nora Ruth Emma Ida Kate Jane Clara Vera".split()
PEOPLE = BOYS + GIRLS
PET_NAMES_HE = "Pip Bo Fuzz Rolo Nim Gus Taro Moss".split()
PET_NAMES_SHE = "Dot Luna Kiki Momo Pearl Suki Tilly Wren".split()
ANIMALS = "fox cat dog mouse bear rabbit owl duck frog pig goat hen wolf horse sheep donkey".split()
COLORS = "red blue green yellow white black orange purple brown pink gray".split()
OBJECTS = "ball kite hat cup book key lamp bag box coat drum bell boat doll flag spoon pen ring scarf bike".split()
PLACES = "garden kitchen barn school market forest library park castle station museum tower bakery meadow".split()
THINGS = "apples pears coins shells stones eggs cards plums nuts books".split()
FOODS = "bread soup cheese cake honey rice corn jam".split()
LIST_WORDS = sorted(
    set(ANIMALS + OBJECTS + PLACES + FOODS + COLORS)
    | set("river tree stone cloud moon star sun rain snow wind fire door window table chair bed road bridge hill lake "
          "sand glass paper wood gold silver milk salt sugar apple pear plum nut egg hand foot eye ear nose head "
          "one two three four five six seven eight nine ten king queen farmer baker sailor song dance game dream "
          "morning evening summer winter".split())
)
ORDINALS = "first second third fourth fifth sixth".split()
FILLER = [
    "It is raining.", "The wind is cold today.", "A bird sings in the tree.", "The clock on the wall is slow.",
    "Soup is on the table.", "The road is long.", "It is a quiet day.", "The door is open.", "A cloud hides the sun.",
    "The bread smells good.", "Someone sings a song.", "The water in the lake is warm.", "Winter is near.",
    "The bridge is old.", "There is sand on the floor.", "The moon is bright tonight.", "A bell rings far away.",
    "The stairs are steep.", "Nobody is in a hurry.", "The fire is warm.", "A ship comes home.", "The hill is high.",
]
