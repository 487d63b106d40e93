-- The tokens that are most often at the top, by layer and tap.
-- tap = resid_post: one tap, or all
-- layers = all: all, a list such as 0,5-10, a layer such as -1, or a slice such as 20:
-- positions = all: all, last, last:N, a position, or A:B
-- rank = 3: tokens to list for each layer and tap
-- by = none: metadata key to split by
SELECT split, tap, layer, rank, token_id, token, places, share
FROM (
    SELECT
        split, tap, layer, token_id, places, places / sum(places) OVER (PARTITION BY split, tap, layer) AS share,
        row_number() OVER (PARTITION BY split, tap, layer ORDER BY places DESC, token_id) AS rank
    FROM (SELECT split, tap, layer, ids[1] AS token_id, count(*) AS places FROM places GROUP BY ALL)
)
LEFT JOIN tokens USING (token_id)
WHERE rank <= $rank
ORDER BY split, layer, tap_order(tap), rank
