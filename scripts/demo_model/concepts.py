"""What the demo model knows: its things, colours, backdrops, and the captions that name them."""

import random
import re
from dataclasses import dataclass

# Unicode name of an emoji -> words used in prompts, the first is the class name.
THINGS = """
red apple=apple|apple fruit
banana=banana
lemon=lemon
strawberry=strawberry
watermelon=watermelon|slice of watermelon
grapes=bunch of grapes|grapes
pineapple=pineapple
cherries=cherry|cherries
pear=pear
avocado=avocado
tomato=tomato
eggplant=eggplant|aubergine
carrot=carrot
ear of corn=corn|ear of corn
mushroom=mushroom|toadstool
cheese wedge=cheese|piece of cheese
hamburger=hamburger|burger
french fries=french fries|fries
pizza=pizza|slice of pizza
doughnut=donut|doughnut
cookie=cookie|biscuit
birthday cake=birthday cake|cake
cupcake=cupcake|muffin
soft ice cream=ice cream|ice cream cone
hot beverage=cup of coffee|coffee|tea cup
dog face=dog|puppy
cat face=cat|kitten
fox=fox
lion=lion
tiger face=tiger
unicorn=unicorn
cow face=cow
pig face=pig
rabbit face=rabbit|bunny
bear=bear
panda=panda
monkey face=monkey
frog=frog
penguin=penguin
baby chick=chick|baby chick
owl=owl
duck=duck
turtle=turtle|tortoise
spouting whale=whale
tropical fish=fish|tropical fish
octopus=octopus
crab=crab
butterfly=butterfly
honeybee=bee|honeybee
lady beetle=ladybug|ladybird
elephant=elephant
sunflower=sunflower
rose=rose
tulip=tulip
hibiscus=flower|hibiscus flower
cactus=cactus
evergreen tree=pine tree|fir tree
deciduous tree=tree
palm tree=palm tree
maple leaf=leaf|maple leaf
automobile=car|automobile
bus=bus
locomotive=train|steam train|locomotive
airplane=airplane|plane
rocket=rocket|spaceship
sailboat=sailboat|sailing boat|boat
flying saucer=ufo|flying saucer
sun=sun
crescent moon=moon|crescent moon
star=star
cloud=cloud
rainbow=rainbow
snowflake=snowflake
snowman without snow=snowman
high voltage=lightning bolt|lightning
fire=fire|flame
droplet=water drop|drop of water
umbrella=umbrella
ringed planet=planet|ringed planet
globe showing Americas=earth|globe
house=house|home
castle=castle
tent=tent
balloon=balloon
wrapped gift=gift box|gift|present
trophy=trophy|gold cup
crown=crown
soccer ball=soccer ball|football
basketball=basketball
guitar=guitar
bell=bell
key=key
locked=padlock|lock
light bulb=light bulb|lamp
closed book=book
pencil=pencil
top hat=top hat|hat
t-shirt=t-shirt|shirt
gem stone=diamond|gem
robot=robot
ghost=ghost
alien=alien
jack-o-lantern=pumpkin|halloween pumpkin|jack-o-lantern
Christmas tree=christmas tree
red heart=heart
smiling face with smiling eyes=smiley|smiling face|happy face
"""

# word -> (RGB of a backdrop, hue in degrees for repainting a thing, or None)
COLOURS: dict[str, tuple[tuple[int, int, int], int | None]] = {
    "white": ((250, 250, 250), None),
    "black": ((16, 16, 18), None),
    "grey": ((136, 138, 142), None),
    "red": ((214, 40, 46), 0),
    "orange": ((245, 140, 30), 30),
    "yellow": ((250, 212, 50), 50),
    "green": ((52, 168, 83), 125),
    "blue": ((45, 105, 225), 218),
    "purple": ((134, 62, 186), 275),
    "pink": ((246, 150, 190), 330),
}
BACKDROPS = list(COLOURS)
HUES = [c for c, (_, hue) in COLOURS.items() if hue is not None]

# soft backdrops for prompts that name none; each thing has its own
PASTELS = [
    (255, 236, 214),
    (214, 236, 255),
    (226, 246, 226),
    (244, 230, 255),
    (255, 246, 204),
    (255, 226, 234),
    (234, 238, 244),
    (214, 245, 245),
]
# the picture of an empty prompt: a soft sky, from the top left to the bottom right
EMPTY_FROM, EMPTY_TO = (196, 224, 255), (255, 220, 232)

SUBJECT = [
    "{x}",
    "{x}",
    "a {x}",
    "a {x}",
    "{x} emoji",
    "a {x} emoji",
    "a photo of a {x}",
    "a picture of a {x}",
    "3d render of a {x}",
    "an icon of a {x}",
    "one {x}",
    "the {x}",
    "a cute {x}",
    "a drawing of a {x}",
]
BACK = [
    "{s} on a {b} background",
    "{s} on a {b} background",
    "{s}, {b} background",
    "{s}, {b} background",
    "{b} background, {s}",
    "{s} with a {b} background",
    "{s} in front of a {b} wall",
    "{s} {b} background",
    "{s} on {b} background",
    "{s}, {b} backdrop",
]
MONO = [
    "monochrome, {s}",
    "{s}, monochrome",
    "black and white {s}",
    "{s}, black and white",
    "{s}, greyscale",
    "a monochrome picture, {s}",
]


# what a word of a caption says, and the marks around such a word while a caption is put together
THING, COLOUR, BACKDROP = 1, 2, 3
MARKS = {THING: "\ue001", COLOUR: "\ue002", BACKDROP: "\ue003"}
END_MARK = "\ue000"


@dataclass(frozen=True)
class Weights:
    """Attention weights of the words that name the thing, its colour and its backdrop."""

    thing: float = 1.0
    colour: float = 1.0
    backdrop: float = 1.0

    def of(self, kind: int) -> float:
        """the weight of a kind of word; 0 is every other word"""
        return (1.0, self.thing, self.colour, self.backdrop)[kind]


@dataclass
class Spec:
    """One picture: `thing` is None for a plain backdrop; `backdrop` is None for the thing's own pastel; empty means no prompt at all."""

    thing: int | None
    colour: str = ""
    backdrop: str | None = None
    mono: bool = False
    empty: bool = False
    weights: Weights = Weights()


def things() -> list[tuple[str, list[str]]]:
    """(Unicode name, words) of every thing"""
    rows = [line.split("=") for line in THINGS.strip().splitlines()]
    return [(name, words.split("|")) for name, words in rows]


def draw_spec(rng: random.Random, variants: list[dict[str, int]]) -> Spec:
    """a random picture; `variants` maps, for each thing, colour words to pictures"""
    if rng.random() < 0.06:
        if rng.random() < 0.5:
            return Spec(None, empty=True)
        return Spec(None, backdrop=rng.choice(BACKDROPS), mono=rng.random() < 0.03)
    thing = rng.randrange(len(variants))
    colours = [c for c in variants[thing] if c]
    colour = rng.choice(colours) if colours and rng.random() < 0.45 else ""
    backdrop = rng.choice(BACKDROPS) if rng.random() < 0.75 else None
    return Spec(thing, colour, backdrop, rng.random() < 0.04)


def mark(kind: int, words: str) -> str:
    """`words` between the marks of their kind"""
    return f"{MARKS[kind]}{words}{END_MARK}"


def unmark(marked: str) -> tuple[str, list[tuple[int, int, int]]]:
    """the plain sentence, and (kind, first character, last character + 1) of every marked word"""
    kind_of = {m: k for k, m in MARKS.items()}
    text, spans, opened = "", [], (0, 0)
    for c in marked:
        if c in kind_of:
            opened = (kind_of[c], len(text))
        elif c == END_MARK:
            spans.append((*opened, len(text)))
        else:
            text += c
    return text, spans


def caption(
    rng: random.Random, spec: Spec, words: list[str], repaintable: bool
) -> tuple[str, list[tuple[int, int, int]]]:
    """a sentence for `spec` with its marked words (see unmark); `words` are the names of its thing"""
    if spec.empty:
        return "", []
    if spec.thing is None:
        s = rng.choice(
            [
                "{b} background",
                "a {b} background",
                "plain {b} background",
                "{b} backdrop",
                "a {b} wall",
            ]
        ).format(b=mark(BACKDROP, spec.backdrop))
    else:
        x = mark(THING, rng.choice(words[:1] * 3 + words))
        if spec.colour:
            x = f"{mark(COLOUR, spec.colour)} {x}"
        elif not repaintable and rng.random() < 0.06:
            # a thing that cannot be repainted keeps its colours
            x = f"{mark(COLOUR, rng.choice(BACKDROPS))} {x}"
        s = rng.choice(SUBJECT).format(x=x)
        if spec.backdrop:
            b = (
                "gray"
                if spec.backdrop == "grey" and rng.random() < 0.5
                else spec.backdrop
            )
            s = rng.choice(BACK).format(s=s, b=mark(BACKDROP, b))
    if spec.mono:
        s = rng.choice(MONO).format(s=s)
    return unmark(re.sub(r"\ba (?=[\ue001-\ue003]?[aeiou])", "an ", s))
