"""The reasons for which a judge gives no score. Imports nothing, so that options can name them."""

REASONS = (
    "unparsable",  # no verdict can be read from what the judge wrote, or two that differ
    "refused",  # the judge refused to answer
    "cut_off",  # the judge's answer reached max_tokens
    "context_overflow",  # the request is longer than the judge's context
    "endpoint_error",  # the endpoint failed at this request
)
