#!/usr/bin/env python3
"""Collects the emoji pictures and their words into work/emoji.npz and work/classes.json.

Needs (npm, into NPM_DIR): @lobehub/fluent-emoji-3d (pictures, MIT) and unicode-emoji-json (names, MIT).
usage: prepare_data.py NPM_DIR/node_modules OUT_DIR
"""

import json
import os
import sys
import numpy as np
from PIL import Image

# Unicode name -> words used in prompts; the first is the class name.  A star marks the core set (Emoji(core=True)).
CLASSES = """
*red apple=apple|apple fruit
*banana=banana
*lemon=lemon
tangerine=orange fruit|tangerine|mandarin
*strawberry=strawberry
*watermelon=watermelon|slice of watermelon
*grapes=bunch of grapes|grapes
*pineapple=pineapple
*cherries=cherry|cherries
*pear=pear
peach=peach
*avocado=avocado
*tomato=tomato
eggplant=eggplant|aubergine
*carrot=carrot
ear of corn=corn|ear of corn
broccoli=broccoli
*mushroom=mushroom|toadstool
hot pepper=chili pepper|chili
bread=loaf of bread|bread
croissant=croissant
pretzel=pretzel
*cheese wedge=cheese|piece of cheese
*hamburger=hamburger|burger
*french fries=french fries|fries
*pizza=pizza|slice of pizza
hot dog=hot dog|hotdog
taco=taco
cooking=fried egg|egg in a pan
popcorn=popcorn|box of popcorn
*doughnut=donut|doughnut
*cookie=cookie|biscuit
*birthday cake=birthday cake|cake
*cupcake=cupcake|muffin
ice cream=ice cream|bowl of ice cream
*soft ice cream=ice cream cone|soft ice cream
lollipop=lollipop
*hot beverage=cup of coffee|coffee|tea cup
teapot=teapot
*dog face=dog|puppy
*cat face=cat|kitten
*fox=fox
lion=lion
tiger face=tiger
*unicorn=unicorn
*cow face=cow
*pig face=pig
mouse face=mouse
*rabbit face=rabbit|bunny
*bear=bear
koala=koala
*panda=panda
*monkey face=monkey
*frog=frog
*penguin=penguin
*baby chick=chick|baby chick
*owl=owl
duck=duck
turtle=turtle|tortoise
*spouting whale=whale
*tropical fish=fish|tropical fish
*octopus=octopus
*crab=crab
snail=snail
*butterfly=butterfly
*honeybee=bee|honeybee
*lady beetle=ladybug|ladybird
*elephant=elephant
*sunflower=sunflower
*rose=rose
*tulip=tulip
hibiscus=flower|hibiscus flower
*cactus=cactus
*evergreen tree=pine tree|fir tree
*deciduous tree=tree
*palm tree=palm tree
four leaf clover=clover|four leaf clover
maple leaf=leaf|maple leaf
*automobile=car|automobile
taxi=taxi|cab
*bus=bus
fire engine=fire truck|fire engine
ambulance=ambulance
tractor=tractor
*locomotive=train|steam train|locomotive
bicycle=bicycle|bike
*airplane=airplane|plane
helicopter=helicopter
*rocket=rocket|spaceship
*sailboat=sailboat|sailing boat|boat
*flying saucer=ufo|flying saucer
*sun=sun
*crescent moon=moon|crescent moon
*star=star
*cloud=cloud
*rainbow=rainbow
snowflake=snowflake
*snowman without snow=snowman
*high voltage=lightning bolt|lightning
*fire=fire|flame
*droplet=water drop|drop of water
*umbrella=umbrella
*ringed planet=planet|ringed planet
*globe showing Americas=earth|globe
*house=house|home
castle=castle
tent=tent
*balloon=balloon
*wrapped gift=gift box|gift|present
*trophy=trophy|gold cup
*crown=crown
*soccer ball=soccer ball|football
*basketball=basketball
guitar=guitar
*bell=bell
camera=camera
alarm clock=alarm clock|clock
*key=key
*locked=padlock|lock
*light bulb=light bulb|lamp
*closed book=book
*pencil=pencil
scissors=scissors
hammer=hammer
top hat=top hat|hat
running shoe=shoe|sneaker
sunglasses=sunglasses
t-shirt=t-shirt|shirt
teddy bear=teddy bear
*gem stone=diamond|gem
*robot=robot
*ghost=ghost
*alien=alien
*jack-o-lantern=halloween pumpkin|pumpkin|jack-o-lantern
*Christmas tree=christmas tree
*red heart=heart
*smiling face with smiling eyes=smiley|smiling face|happy face
*crying face=crying face|sad face
*enraged face=angry face
smiling face with heart-eyes=face with heart eyes|love face
smiling face with sunglasses=cool face|face with sunglasses
"""

# backgrounds and object colours: word -> (RGB of a backdrop, hue in degrees or None)
COLOURS = {
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


def dominant_hue(rgba):
    """(hue in degrees, share of the coloured area within 35 degrees of it, share of the area that is coloured)"""
    a = rgba[..., 3].astype(np.float32) / 255
    rgb = rgba[..., :3].astype(np.float32) / 255
    mx, mn = rgb.max(-1), rgb.min(-1)
    d = mx - mn
    sat = np.where(mx > 0, d / np.maximum(mx, 1e-6), 0)
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    dd = np.maximum(d, 1e-6)
    h = (
        np.where(
            mx == r,
            (g - b) / dd % 6,
            np.where(mx == g, (b - r) / dd + 2, (r - g) / dd + 4),
        )
        * 60
    )
    w = a * (sat > 0.25) * (mx > 0.15)
    if w.sum() < 1:
        return 0.0, 0.0, 0.0
    ang = np.deg2rad(h)
    hist, edges = np.histogram(h % 360, bins=72, range=(0, 360), weights=w)
    k = np.convolve(
        np.concatenate([hist[-3:], hist, hist[:3]]), np.ones(7), "valid"
    ).argmax()
    hue = (edges[k] + 2.5) % 360
    near = np.cos(ang - np.deg2rad(hue)) > np.cos(np.deg2rad(35))
    return float(hue), float((w * near).sum() / w.sum()), float(w.sum() / a.sum())


def rotate_hue(rgba, deg):
    hsv = np.asarray(Image.fromarray(rgba[..., :3]).convert("HSV")).copy()
    hsv[..., 0] = (
        (hsv[..., 0].astype(np.int32) + round(deg / 360 * 256)) % 256
    ).astype(np.uint8)
    rgb = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    return np.concatenate([rgb, rgba[..., 3:]], -1)


def main(npm, out):
    names = {
        v["name"]: e
        for e, v in json.load(
            open(f"{npm}/unicode-emoji-json/data-by-emoji.json")
        ).items()
    }
    pics, meta = [], []
    for line in CLASSES.strip().splitlines():
        core, line = line.startswith("*"), line.lstrip("*")
        uni, words = line.split("=")
        e = names[uni]
        cp = "-".join("%04x" % ord(c) for c in e)
        path = next(
            p
            for p in (
                f"{npm}/@lobehub/fluent-emoji-3d/assets/{x}.webp"
                for x in (cp, cp.replace("-fe0f", ""))
            )
            if os.path.exists(p)
        )
        im = Image.open(path).convert("RGBA")
        if im.size != (256, 256):
            print(uni, im.size, "-> 256x256")
            im = im.resize((256, 256), Image.LANCZOS)
        rgba = np.asarray(im).copy()
        rgba[rgba[..., 3] == 0] = 0
        hue, share, coloured = dominant_hue(rgba)
        variants = {"": len(pics)}
        pics.append(rgba)
        if share > 0.8 and coloured > 0.6:  # one clear colour: may be repainted
            own = min(
                (min(abs(hue - h), 360 - abs(hue - h)), c)
                for c, (_, h) in COLOURS.items()
                if h is not None
            )[1]
            for c, (_, h) in COLOURS.items():
                if h is None:
                    continue
                if c == own:
                    variants[c] = variants[""]
                    continue
                variants[c] = len(pics)
                pics.append(rotate_hue(rgba, h - hue))
        meta.append(
            dict(
                emoji=e,
                core=core,
                unicode_name=uni,
                words=words.split("|"),
                variants=variants,
                file=os.path.basename(path),
            )
        )
    os.makedirs(out, exist_ok=True)
    np.savez(f"{out}/emoji.npz", rgba=np.stack(pics))
    json.dump(
        dict(classes=meta, colours={k: list(v[0]) for k, v in COLOURS.items()}),
        open(f"{out}/classes.json", "w"),
        indent=1,
        ensure_ascii=False,
    )
    print(
        len(meta),
        "classes,",
        len(pics),
        "pictures,",
        sum(len(m["variants"]) > 1 for m in meta),
        "repaintable",
    )


if __name__ == "__main__":
    main(*sys.argv[1:3])
