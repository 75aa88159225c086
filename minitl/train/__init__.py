"""Training: configurations, the step, the run, evaluation and prediction."""

from .config import TrainConfig, default_config, load_config
from .evaluate import draw_maps, evaluate
from .predict import Prediction, predict
from .run import Trainer, load_model, load_run, model_of, resume, start
