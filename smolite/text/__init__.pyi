from .json_tokenizer import ROLES as ROLES
from .json_tokenizer import JsonTokenizer as JsonTokenizer
from .normalization import composed_length as composed_length
from .tokenizer import Tokenizer as Tokenizer
from .tokenizer import train_fitting_tokenizer as train_fitting_tokenizer
from .tokenizer import train_tokenizer as train_tokenizer
