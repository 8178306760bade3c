"""Prompts and class names of CLIP's paper for torchvision's data sets.

Source: `data/prompts.md` of github.com/openai/CLIP at e184f60 (MIT License), which says that the paper's zero-shot
numbers are from these. Spelled as there.
"""

_PHOTOS = (
    "a photo of a {}.",
    "a blurry photo of a {}.",
    "a black and white photo of a {}.",
    "a low contrast photo of a {}.",
    "a high contrast photo of a {}.",
    "a bad photo of a {}.",
    "a good photo of a {}.",
    "a photo of a small {}.",
    "a photo of a big {}.",
    "a photo of the {}.",
    "a blurry photo of the {}.",
    "a black and white photo of the {}.",
    "a low contrast photo of the {}.",
    "a high contrast photo of the {}.",
    "a bad photo of the {}.",
    "a good photo of the {}.",
    "a photo of the small {}.",
    "a photo of the big {}.",
)
_OBJECTS = (
    "a photo of a {}.",
    "a painting of a {}.",
    "a plastic {}.",
    "a sculpture of a {}.",
    "a sketch of a {}.",
    "a tattoo of a {}.",
    "a toy {}.",
    "a rendition of a {}.",
    "a embroidered {}.",
    "a cartoon {}.",
    "a {} in a video game.",
    "a plushie {}.",
    "a origami {}.",
    "art of a {}.",
    "graffiti of a {}.",
    "a drawing of a {}.",
    "a doodle of a {}.",
    "a photo of the {}.",
    "a painting of the {}.",
    "the plastic {}.",
    "a sculpture of the {}.",
    "a sketch of the {}.",
    "a tattoo of the {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "the embroidered {}.",
    "the cartoon {}.",
    "the {} in a video game.",
    "the plushie {}.",
    "the origami {}.",
    "art of the {}.",
    "graffiti of the {}.",
    "a drawing of the {}.",
    "a doodle of the {}.",
)
TEMPLATES: dict[str, tuple[str, ...]] = {
    "cifar10": _PHOTOS,
    "cifar100": _PHOTOS,
    "food101": ("a photo of {}, a type of food.",),
    "pets": ("a photo of a {}, a type of pet.",),
    "stl10": ("a photo of a {}.", "a photo of the {}."),
    "flowers102": ("a photo of a {}, a type of flower.",),
    "dtd": (
        "a photo of a {} texture.",
        "a photo of a {} pattern.",
        "a photo of a {} thing.",
        "a photo of a {} object.",
        "a photo of the {} texture.",
        "a photo of the {} pattern.",
        "a photo of the {} thing.",
        "a photo of the {} object.",
    ),
    "caltech101": _OBJECTS,
    "fgvc-aircraft": ("a photo of a {}, a type of aircraft.", "a photo of the {}, a type of aircraft."),
}
"""By data set, with one `{}` for the class name. The paper has none for SVHN."""

CALTECH101 = {
    "Faces": "off-center face",
    "Faces_easy": "centered face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
    "airplanes": "airplane",
    "car_side": "side of a car",
    "cougar_body": "body of a cougar cat",
    "cougar_face": "face of a cougar cat",
    "crocodile_head": "head of a  crocodile",
    "flamingo_head": "head of a flamingo",
    "snoopy": "snoopy (cartoon beagle)",
    "yin_yang": "yin and yang symbol",
}
"""Names of those of Caltech-101's folders whose name is not the folder's."""

FLOWERS102 = {"globe-flower": "globe flower", "pink-yellow dahlia?": "pink and yellow dahlia", "ball moss": "air plant"}
"""Names of those of the flowers that torchvision calls otherwise."""


def _listed(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


NUMBERED: dict[str, tuple[str, ...]] = {
    "cifar10": _listed("""
airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck
"""),
    "cifar100": _listed("""
apple, aquarium fish, baby, bear, beaver, bed, bee, beetle, bicycle, bottle, bowl, boy, bridge, bus,
butterfly, camel, can, castle, caterpillar, cattle, chair, chimpanzee, clock, cloud, cockroach,
couch, crab, crocodile, cup, dinosaur, dolphin, elephant, flatfish, forest, fox, girl, hamster,
house, kangaroo, keyboard, lamp, lawn mower, leopard, lion, lizard, lobster, man, maple tree,
motorcycle, mountain, mouse, mushroom, oak tree, orange, orchid, otter, palm tree, pear,
pickup truck, pine tree, plain, plate, poppy, porcupine, possum, rabbit, raccoon, ray, road, rocket,
rose, sea, seal, shark, shrew, skunk, skyscraper, snail, snake, spider, squirrel, streetcar,
sunflower, sweet pepper, table, tank, telephone, television, tiger, tractor, train, trout, tulip,
turtle, wardrobe, whale, willow tree, wolf, woman, worm
"""),
    "stl10": _listed("""
airplane, bird, car, cat, deer, dog, horse, monkey, ship, truck
"""),
    "svhn": _listed("zero, one, two, three, four, five, six, seven, eight, nine"),
}
"""Names in the order of the numbers that the files hold. SVHN's, which the paper leaves out, are CLIP_benchmark's."""
