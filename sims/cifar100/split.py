"""The names of CIFAR-100's classes, divided into base, open-world and novel as the paper's appendix does."""

from sims.data.division import Division

# The appendix lists `cattle` under both base and open-world; its code has 64 base outputs, so it is open-world here.
_OPEN_WORLD = (
    "beetle beaver butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea shark "
    "television tractor"
)
_NOVEL = (
    "baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table "
    "telephone wardrobe whale woman worm"
)
_BASE = (
    "apple aquarium_fish bear bee bottle bowl boy bridge bus can castle caterpillar chair clock cloud cockroach "
    "couch cup dinosaur dolphin elephant forest girl hamster house kangaroo keyboard lawn_mower lion lizard "
    "lobster mountain mouse mushroom oak_tree orange orchid palm_tree pear pine_tree plate porcupine possum "
    "rabbit raccoon ray road seal shrew skunk skyscraper snake spider squirrel streetcar sunflower tank tiger "
    "train trout tulip turtle willow_tree wolf"
)

#: 64 base, 16 open-world and 20 novel classes.
CIFAR100 = Division(
    base=tuple(_BASE.split()),
    open_world=tuple(sorted(_OPEN_WORLD.split())),
    novel=tuple(sorted(_NOVEL.split())),
)
