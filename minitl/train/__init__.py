"""Training: configurations, the step, the run, and what a finished run is good for."""

from .config import TrainConfig, default_config, load_config
from .evaluate import draw_maps, evaluate
from .predict import Prediction, predict
from .run import Trainer, load_model, load_run, resume, start
