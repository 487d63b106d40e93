-- Which part of which block, attention or MLP, lifts the final prediction to the top, first and for good.
-- positions = all: all, last, last:N, a position, or A:B
-- by = none: metadata key to split by
-- needs: final, resid_mid, layers
WITH residual AS (
    SELECT split, prompt, position, tap, layer, layer * 5 + tap_order(tap) AS step, final_rank
    FROM places
    WHERE tap IN ('resid_pre', 'resid_mid', 'resid_post')
),
steps AS (
    SELECT tap, layer, step, lag(step) OVER (ORDER BY step) AS previous
    FROM (SELECT DISTINCT tap, layer, step FROM residual)
),
lifted AS (
    SELECT split, first, coalesce(step, first) AS stable
    FROM (
        SELECT split, min(step) FILTER (final_rank = 1) AS first, max(step) FILTER (final_rank <> 1) AS previous
        FROM residual
        GROUP BY split, prompt, position
    )
    LEFT JOIN steps USING (previous)
),
counted AS (
    SELECT split, step, sum(first)::BIGINT AS first, sum(stable)::BIGINT AS stable
    FROM (
        SELECT split, first AS step, count(*) AS first, 0 AS stable FROM lifted GROUP BY ALL
        UNION ALL
        SELECT split, stable, 0, count(*) FROM lifted GROUP BY ALL
        UNION ALL
        SELECT split, step, 0, 0 FROM (SELECT DISTINCT split FROM lifted), steps
    )
    GROUP BY ALL
)
SELECT
    split, layer,
    CASE tap
        WHEN 'resid_pre' THEN 'embedding'
        WHEN 'resid_mid' THEN if(previous IS NULL, 'embedding or attention', 'attention')  -- the first step has both where resid_pre is not stored
        ELSE 'mlp'
    END AS part,
    first, first / sum(first) OVER whole AS first_share, stable, stable / sum(stable) OVER whole AS stable_share
FROM counted
JOIN steps USING (step)
WINDOW whole AS (PARTITION BY split)
ORDER BY split, step
