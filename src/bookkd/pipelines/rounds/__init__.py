"""`rounds`: assistants teach a student and the student teaches back, round by round through books, one network in memory at a time.

Each round is a folder that is only added to: `book` (what the assistants say, each kept as a member), `student`, `student-book` and
`assistant-<k>`, with `round.json` for who learnt from whom. The method is `bookkd.methods.DIL`, whose equations are reconstructed.
"""

from __future__ import annotations

from bookkd.pipelines.rounds.measured import Said, ensemble_of, said_on
from bookkd.pipelines.rounds.run import RoundsResult, run_rounds, student_again
from bookkd.pipelines.rounds.settings import Feedback, Rounds

__all__ = ["Feedback", "Rounds", "RoundsResult", "Said", "ensemble_of", "run_rounds", "said_on", "student_again"]
