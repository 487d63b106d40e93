-- How many positions decide at each layer: where the final prediction leads first, and from where on it leads for good.
-- positions = all: all, last, last:N, a position, or A:B
-- by = none: metadata key to split by
-- needs: final
WITH decided AS (
    SELECT split, first, stable
    FROM decisions
    JOIN asked USING (prompt)
    WHERE position BETWEEN lowest AND highest
),
counted AS (
    SELECT split, layer, sum(first)::BIGINT AS first, sum(stable)::BIGINT AS stable
    FROM (
        SELECT split, first AS layer, count(*) AS first, 0 AS stable FROM decided GROUP BY ALL
        UNION ALL
        SELECT split, stable, 0, count(*) FROM decided GROUP BY ALL
        UNION ALL
        SELECT split, layer, 0, 0 FROM (SELECT DISTINCT split FROM decided), (SELECT DISTINCT layer FROM lens WHERE tap = 'resid_post')
    )
    GROUP BY ALL
)
SELECT
    split, layer,
    first, sum(first) OVER below / sum(first) OVER whole AS first_share,
    stable, sum(stable) OVER below / sum(stable) OVER whole AS stable_share
FROM counted
WINDOW whole AS (PARTITION BY split), below AS (PARTITION BY split ORDER BY layer)
ORDER BY split, layer
