-- Places whose entropy or KL is far from what is usual in their layer and tap.
-- tap = resid_post: one tap, or all
-- layers = all: all, a list such as 0,5-10, a layer such as -1, or a slice such as 20:
-- positions = all: all, last, last:N, a position, or A:B
-- by = none: metadata key; what is usual is then taken for each of its values
-- limit = 20: most rows to return
WITH measured AS (
    SELECT split, prompt, position, tap, layer, 'entropy' AS metric, entropy::DOUBLE AS value FROM places
    UNION ALL
    SELECT split, prompt, position, tap, layer, 'kl', kl::DOUBLE FROM places WHERE kl IS NOT NULL
),
usual AS (
    SELECT split, tap, layer, metric, quantile_cont(value, [0.25, 0.5, 0.75]) AS quarters
    FROM measured
    GROUP BY ALL
)
SELECT
    split, id, position, input.token AS input, tap, layer, metric, value, quarters[2] AS median,
    -- entropy is stored in steps of 1/64: less apart is rounding, as all of the last layer's KL to itself is
    (value - quarters[2]) / greatest(quarters[3] - quarters[1], 1.0 / 64) AS distance
FROM (
    SELECT measured.*, quarters
    FROM measured
    JOIN usual ON (measured.tap, measured.layer, measured.metric) = (usual.tap, usual.layer, usual.metric)
        AND measured.split IS NOT DISTINCT FROM usual.split
)
JOIN (SELECT prompt, id, token_ids FROM asked) USING (prompt)
LEFT JOIN tokens AS input ON input.token_id = token_ids[position + 1]
WHERE value <> quarters[2]
ORDER BY abs(distance) DESC, prompt, position, layer, tap_order(tap), metric
LIMIT $limit
