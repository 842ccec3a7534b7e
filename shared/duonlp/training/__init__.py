"""Framework-neutral training: settings, schedules, FLOPs, run files and settings files."""

from duonlp.training.best import Best, greater_is_better
from duonlp.training.config import PretrainingConfig, mesh_shape
from duonlp.training.fit_config import FitConfig
from duonlp.training.flops import PairFlops, TokenFlops, block_flops, mfu, pair_flops, palm_flops, six_n, token_flops
from duonlp.training.generated import GenerationScorer
from duonlp.training.replaced_tokens import ReplacedTokens
from duonlp.training.result import FitResult
from duonlp.training.run_file import read_run
from duonlp.training.schedules import learning_rate_at
from duonlp.training.settings import Settings
from duonlp.training.settings_file import build, read_toml, to_toml, write_toml

__all__ = [
    "Best",
    "FitConfig",
    "FitResult",
    "GenerationScorer",
    "PairFlops",
    "PretrainingConfig",
    "ReplacedTokens",
    "Settings",
    "TokenFlops",
    "block_flops",
    "build",
    "greater_is_better",
    "learning_rate_at",
    "mesh_shape",
    "mfu",
    "pair_flops",
    "palm_flops",
    "read_run",
    "read_toml",
    "six_n",
    "to_toml",
    "token_flops",
    "write_toml",
]
