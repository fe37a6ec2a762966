"""The classes of published sets: what their masks' values and colours are called."""

from limbeck.data.scenes.class_table import ClassTable, Colour

# fmt: off
VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)
CITYSCAPES = (
    ("road", 7, (128, 64, 128)), ("sidewalk", 8, (244, 35, 232)), ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)), ("fence", 13, (190, 153, 153)), ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)), ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)), ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)), ("person", 24, (220, 20, 60)), ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)), ("truck", 27, (0, 0, 70)), ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)), ("motorcycle", 32, (0, 0, 230)), ("bicycle", 33, (119, 11, 32)),
)
"""Name, label id, colour; the place in the list is the train id."""
CITYSCAPES_VOID: frozenset[Colour] = frozenset((
    (0, 0, 0), (20, 20, 20), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140),
    (180, 165, 180), (150, 100, 100), (150, 120, 90), (0, 0, 90), (0, 0, 110),
))
CAMVID: tuple[tuple[str, Colour], ...] = (
    ("Animal", (64, 128, 64)), ("Archway", (192, 0, 128)), ("Bicyclist", (0, 128, 192)),
    ("Bridge", (0, 128, 64)), ("Building", (128, 0, 0)), ("Car", (64, 0, 128)),
    ("CartLuggagePram", (64, 0, 192)), ("Child", (192, 128, 64)), ("Column_Pole", (192, 192, 128)),
    ("Fence", (64, 64, 128)), ("LaneMkgsDriv", (128, 0, 192)), ("LaneMkgsNonDriv", (192, 0, 64)),
    ("Misc_Text", (128, 128, 64)), ("MotorcycleScooter", (192, 0, 192)),
    ("OtherMoving", (128, 64, 64)), ("ParkingBlock", (64, 192, 128)), ("Pedestrian", (64, 64, 0)),
    ("Road", (128, 64, 128)), ("RoadShoulder", (128, 128, 192)), ("Sidewalk", (0, 0, 192)),
    ("SignSymbol", (192, 128, 128)), ("Sky", (128, 128, 128)), ("SUVPickupTruck", (64, 128, 192)),
    ("TrafficCone", (0, 0, 64)), ("TrafficLight", (0, 64, 64)), ("Train", (192, 64, 128)),
    ("Tree", (128, 128, 0)), ("Truck_Bus", (192, 128, 192)), ("Tunnel", (64, 0, 64)),
    ("VegetationMisc", (192, 192, 0)), ("Wall", (64, 192, 0)),
)
# fmt: on


def voc_colour(value: int) -> Colour:
    """The colour that VOC's palette gives a value: its bits, three by three, from the highest."""
    red = green = blue = 0
    for place in range(8):
        bits = value >> (3 * place)
        red |= (bits & 1) << (7 - place)
        green |= (bits >> 1 & 1) << (7 - place)
        blue |= (bits >> 2 & 1) << (7 - place)
    return red, green, blue


CITYSCAPES_IDS = ClassTable(
    names=tuple(name for name, _, _ in CITYSCAPES),
    values=tuple(value for _, value, _ in CITYSCAPES),
    where="Cityscapes' label ids",
    ignored=frozenset(range(34)) - {value for _, value, _ in CITYSCAPES},
)
CITYSCAPES_TRAIN_IDS = ClassTable(
    names=CITYSCAPES_IDS.names,
    values=tuple(range(len(CITYSCAPES))),
    where="Cityscapes' train ids",
    ignored=frozenset({19}),
)
VOC = ClassTable(
    names=VOC_NAMES,
    values=tuple(range(21)),
    where="the classes of PASCAL VOC",
    colours=tuple(map(voc_colour, range(21))),
    ignored=frozenset({255}),
    ignored_colours=frozenset({voc_colour(255)}),
)
COLOUR_TABLES = (
    VOC,
    ClassTable(
        names=tuple(name for name, _ in CAMVID),
        values=(),
        where="the colours of CamVid",
        colours=tuple(colour for _, colour in CAMVID),
        ignored_colours=frozenset({(0, 0, 0)}),
    ),
    ClassTable(
        names=CITYSCAPES_IDS.names,
        values=(),
        where="the colours of Cityscapes",
        colours=tuple(colour for _, _, colour in CITYSCAPES),
        ignored_colours=CITYSCAPES_VOID,
    ),
)
"""Tried on masks of colours that have no table."""
