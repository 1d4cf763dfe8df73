"""Thoughts that several test files share."""

from tinylatent.engine.thoughts import Token


class Gated(Token):
    """A token beside the mixture of the softmax, in a fixed ratio: both parts of an input at once."""

    has_latent, parallel, mixes_table = True, False, True

    def latent(self, state, action):
        return state.table.mix(state.logits.softmax(-1))

    def compose(self, state, action, latent):
        return 0.8 * state.table.rows(action["id"]) + 0.6 * latent
