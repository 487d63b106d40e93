-- A token, or a set of tokens taken as one, by layer and tap: how often it is among the k best, its rank and its probability.
-- token: the tokens, by text or as id:N
-- tap = resid_post: which tap, or all
-- layers = all: which layers, as N or A:B
-- positions = all: which positions: all, last, last:N or A:B
-- by = none: metadata key to split by
WITH followed AS (
    SELECT
        split, tap, layer, ids, logprobs, tracked_rank, tracked_logprob,
        tracked_rank IS NOT NULL AND tracked_logprob IS NOT NULL AND list_has_all(tracked, $token::UINTEGER[]) AS exact,
        [list_position(CASE WHEN exact THEN tracked ELSE ids END, wanted) FOR wanted IN $token::UINTEGER[]] AS found
    FROM places
    JOIN (SELECT prompt, tracked FROM asked) USING (prompt)
),
ranked AS (
    SELECT
        split, tap, layer, exact, len(ids) AS k,
        list_min([CASE WHEN exact THEN tracked_rank[found_at] ELSE found_at END FOR found_at IN found IF found_at > 0]) AS rank,
        ln(list_sum([exp(CASE WHEN exact THEN tracked_logprob[found_at] ELSE logprobs[found_at] END) FOR found_at IN found IF found_at > 0])) AS logprob
    FROM followed
)
SELECT
    split, tap, layer, count(*) AS places, avg((coalesce(rank, k + 1) <= k)::INTEGER) AS share,
    nullif(quantile_disc(coalesce(rank, 4294967295), 0.5), 4294967295) AS median_rank, avg(logprob) AS logprob,
    bool_and(exact) AS exact
FROM ranked
GROUP BY split, tap, layer
ORDER BY split, layer, tap_order(tap)
