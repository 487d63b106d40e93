-- Entropy, KL and agreement with the final prediction by layer and tap, with 10, 50 and 90 % of the places.
-- tap = all: which tap, or all
-- layers = all: which layers, as N or A:B
-- positions = all: which positions: all, last, last:N or A:B
-- by = none: metadata key to split by
SELECT
    split, tap, layer, places, agreement,
    entropy, entropies[1] AS entropy_10, entropies[2] AS entropy_50, entropies[3] AS entropy_90,
    kl, kls[1] AS kl_10, kls[2] AS kl_50, kls[3] AS kl_90
FROM (
    SELECT
        split, tap, layer, count(*) AS places, avg((final_rank = 1)::INTEGER) AS agreement,
        avg(entropy) AS entropy, quantile_cont(entropy::DOUBLE, [0.1, 0.5, 0.9]) AS entropies,
        avg(kl) AS kl, quantile_cont(kl::DOUBLE, [0.1, 0.5, 0.9]) AS kls
    FROM places
    GROUP BY ALL
)
ORDER BY split, layer, tap_order(tap)
