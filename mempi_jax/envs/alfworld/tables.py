"""What ALFWorld's kinds of things can do: which receptacle holds what, what can be cleaned, heated, cooled, sliced, opened.

The same facts as in the tables of ALFRED's game generator (MIT licence), in a compact form of our own, and the rooms that our
generated households are made of [O]. Names are those of the PDDL problems ("SinkBasin"); the text shows them in lower case.
"""

from __future__ import annotations

_TABLE_TOP = (
  'AlarmClock Apple BaseballBat BasketBall Book Bowl Box Bread ButterKnife CD Candle CellPhone Cloth CreditCard Cup '
  'DishSponge Egg Fork Glassbottle HandTowel Kettle KeyChain Knife Ladle Laptop Lettuce Mug Newspaper Pan PaperTowel Pen '
  'Pencil PepperShaker Plate Pot Potato RemoteControl SaltShaker SoapBar SoapBottle Spatula Spoon SprayBottle Statue '
  'TennisRacket TissueBox ToiletPaper ToiletPaperRoll Tomato Vase Watch WateringCan WineBottle'
)

_HOLDS = {
  'ArmChair': 'BasketBall Book Box CellPhone Cloth CreditCard KeyChain Laptop Newspaper Pillow RemoteControl',
  'BathtubBasin': 'Cloth DishSponge HandTowel SoapBar',
  'Bed': 'BaseballBat BasketBall Book CellPhone Laptop Newspaper Pillow TennisRacket',
  'Cabinet': (
    'Book Bowl Box CD Candle Cloth Cup DishSponge Glassbottle HandTowel Kettle Ladle Mug Newspaper Pan PepperShaker Plate Plunger Pot '
    'SaltShaker SoapBar SoapBottle SprayBottle TissueBox ToiletPaper ToiletPaperRoll Vase WateringCan WineBottle'
  ),
  'Cart': (
    'Candle Cloth DishSponge HandTowel Mug PaperTowel Plunger SoapBar SoapBottle SprayBottle Statue TissueBox ToiletPaper '
    'ToiletPaperRoll Vase'
  ),
  'CoffeeMachine': 'Mug',
  'CoffeeTable': _TABLE_TOP,
  'CounterTop': _TABLE_TOP,
  'Desk': (
    'AlarmClock BasketBall Book Bowl Box CD Candle CellPhone Cloth CreditCard Cup Glassbottle KeyChain Laptop Mug Newspaper Pen Pencil '
    'Plate RemoteControl SoapBottle SprayBottle Statue TennisRacket TissueBox ToiletPaper ToiletPaperRoll Vase Watch WateringCan '
    'WineBottle'
  ),
  'DiningTable': _TABLE_TOP,
  'Drawer': (
    'Book ButterKnife CD Candle CellPhone Cloth CreditCard DishSponge Fork HandTowel KeyChain Knife Ladle Newspaper Pen Pencil '
    'PepperShaker RemoteControl SaltShaker SoapBar SoapBottle Spatula Spoon SprayBottle TissueBox ToiletPaper ToiletPaperRoll Watch '
    'WateringCan'
  ),
  'Dresser': (
    'AlarmClock BasketBall Book Bowl Box CD Candle CellPhone Cloth CreditCard Cup Glassbottle KeyChain Laptop Mug Newspaper Pen Pencil '
    'Plate RemoteControl SprayBottle Statue TennisRacket TissueBox ToiletPaper ToiletPaperRoll Vase Watch WateringCan WineBottle'
  ),
  'Fridge': 'Apple Bowl Bread Cup Egg Glassbottle Lettuce Mug Pan Plate Pot Potato Tomato WineBottle',
  'GarbageCan': (
    'Apple Bread CD Cloth DishSponge Egg HandTowel Lettuce Newspaper PaperTowel Pen Pencil Potato SoapBar SoapBottle SprayBottle '
    'TissueBox ToiletPaper ToiletPaperRoll Tomato WineBottle'
  ),
  'HandTowelHolder': 'HandTowel',
  'LaundryHamper': 'Cloth',
  'Microwave': 'Apple Bowl Bread Cup Egg Glassbottle Mug Plate Potato Tomato',
  'Ottoman': 'BasketBall Book Box CellPhone Cloth CreditCard KeyChain Laptop Newspaper Pillow RemoteControl',
  'Safe': 'CD CellPhone CreditCard KeyChain Statue Vase Watch',
  'Shelf': (
    'AlarmClock Book Bowl Box CD Candle CellPhone Cloth CreditCard Cup DishSponge Glassbottle HandTowel Kettle KeyChain Mug Newspaper '
    'PaperTowel Pen Pencil PepperShaker Plate Pot RemoteControl SaltShaker SoapBar SoapBottle SprayBottle Statue TissueBox ToiletPaper '
    'ToiletPaperRoll Vase Watch WateringCan WineBottle'
  ),
  'SideTable': _TABLE_TOP,
  'SinkBasin': (
    'Apple Bowl ButterKnife Cloth Cup DishSponge Egg Fork Glassbottle HandTowel Kettle Knife Ladle Lettuce Mug Pan Plate Pot Potato '
    'SoapBar Spatula Spoon Tomato'
  ),
  'Sofa': 'BasketBall Book Box CellPhone Cloth CreditCard KeyChain Laptop Newspaper Pillow RemoteControl',
  'StoveBurner': 'Kettle Pan Pot',
  'TVStand': 'TissueBox',
  'Toilet': ('Candle Cloth DishSponge HandTowel Newspaper PaperTowel SoapBar SoapBottle SprayBottle TissueBox ToiletPaper ToiletPaperRoll'),
  'ToiletPaperHanger': 'ToiletPaper ToiletPaperRoll',
  'TowelHolder': 'Towel',
}

HOLDS: dict[str, frozenset[str]] = {receptacle: frozenset(objects.split()) for receptacle, objects in _HOLDS.items()}

OPENABLE = frozenset('Cabinet Drawer Fridge Microwave Safe'.split())
CLEANABLE = frozenset(
  'Apple Bowl ButterKnife Cloth Cup DishSponge Egg Fork Kettle Knife Ladle Lettuce Mug Pan Plate Pot Potato SoapBar Spatula Spoon '
  'Tomato'.split()
)
HEATABLE = frozenset('Apple Bread Cup Egg Mug Plate Potato Tomato'.split())
COOLABLE = frozenset('Apple Bowl Bread Cup Egg Lettuce Mug Pan Plate Pot Potato Tomato WineBottle'.split())
SLICEABLE = frozenset('Apple Bread Egg Lettuce Potato Tomato'.split())
CONTAINERS = frozenset('Bowl Box Cup Mug Pan Plate Pot'.split())  # objects that ALFRED calls receptacle objects
LAMP = 'DeskLamp'

# Task type -> (kinds it applies to, receptacle that does it).
TOOLS = {
  'pick_clean_then_place_in_recep': (CLEANABLE, 'SinkBasin'),
  'pick_heat_then_place_in_recep': (HEATABLE, 'Microwave'),
  'pick_cool_then_place_in_recep': (COOLABLE, 'Fridge'),
}

# Our rooms [O]: receptacle type -> how many a large room has at most, and the kinds that goals ask for.
ROOMS: dict[str, dict[str, int]] = {
  'kitchen': {
    'Cabinet': 4, 'CounterTop': 3, 'DiningTable': 2, 'Drawer': 4, 'Fridge': 1, 'GarbageCan': 1, 'Microwave': 1, 'Shelf': 3, 'SideTable': 2,
    'SinkBasin': 1, 'StoveBurner': 4,
  },
  'bedroom': {'ArmChair': 2, 'Bed': 1, 'Desk': 2, 'Drawer': 4, 'Dresser': 2, 'GarbageCan': 1, 'Safe': 1, 'Shelf': 4, 'SideTable': 3},
  'bathroom': {'Cabinet': 4, 'Cart': 2, 'CounterTop': 2, 'Drawer': 4, 'GarbageCan': 2, 'Shelf': 3, 'SideTable': 2, 'SinkBasin': 2, 'Toilet': 1},
  'livingroom': {
    'ArmChair': 2, 'Cabinet': 4, 'CoffeeTable': 2, 'DiningTable': 2, 'Drawer': 4, 'Dresser': 2, 'Ottoman': 2, 'Safe': 1, 'Shelf': 4,
    'SideTable': 2, 'Sofa': 2,
  },
}  # fmt: skip
LAMP_PLACE = {'bedroom': 'Desk', 'livingroom': 'SideTable'}
TARGETS: dict[str, tuple[str, ...]] = {
  'kitchen': tuple('Apple Bowl Bread Cup Egg Mug Pan Plate Potato Tomato DishSponge Knife Spatula'.split()),
  'bedroom': tuple('AlarmClock Book CD CellPhone CreditCard KeyChain Laptop Pencil'.split()),
  'bathroom': tuple('Candle Cloth SoapBar SoapBottle SprayBottle ToiletPaper'.split()),
  'livingroom': tuple('Book CreditCard KeyChain Newspaper RemoteControl Statue Vase Watch'.split()),
}


def can_hold(receptacle: str, kind: str) -> bool:
  """Whether a receptacle type may hold an object type; names as in PDDL."""
  return kind in HOLDS.get(receptacle, ())


def text_name(name: str) -> str:
  """The name that the text shows: "SinkBasin" is "sinkbasin"."""
  return name.lower()
