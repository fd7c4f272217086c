from .callbacks import loss_curve as loss_curve
from .fit import finetune as finetune
from .fit import pretrain as pretrain
from .fit import train_pairs as train_pairs
from .options import RECIPES as RECIPES
from .options import TrainingOptions as TrainingOptions
