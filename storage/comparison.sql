-- Two runs at the places that they share; the parameters are made by comparison.py.
WITH matched AS (SELECT prompt, other_prompt, shared FROM matched($one, $other, $generated) WHERE shared > 0),
pairs AS (SELECT unnest($layers::USMALLINT[]) AS layer, unnest($other_layers::USMALLINT[]) AS other_layer),
compared AS (
    SELECT
        one.tap, one.layer, pairs.other_layer, count(*) AS places, avg((one.ids[1] = other.ids[1])::INTEGER) AS agreement,
        avg(len(list_intersect(one.ids[1:$k], other.ids[1:$k])) / $k) AS overlap,
        avg(other.entropy::DOUBLE - one.entropy) AS entropy_change,
        -- a token beyond the k best has at most the logprob of the last of them
        avg(
            coalesce(other.logprobs[nullif(list_position(other.ids, one.ids[1]), 0)], other.logprobs[-1])::DOUBLE - one.logprobs[1]
        ) AS logprob_change,
        avg(other.next_logprob::DOUBLE - one.next_logprob) FILTER (one.position + 1 < shared) AS next_logprob_change,
        avg(other.kl::DOUBLE - one.kl) AS kl_change
    FROM lens AS one
    JOIN matched ON matched.prompt = one.prompt AND one.position < shared
    JOIN pairs ON pairs.layer = one.layer
    JOIN lens AS other
        ON other.prompt = matched.other_prompt AND other.layer = pairs.other_layer
        AND other.tap = one.tap AND other.position = one.position
    WHERE one.run = $one AND other.run = $other
    GROUP BY ALL
),
shifted AS (
    SELECT 'resid_post' AS tap, one.stable AS layer, count(*) AS decided, avg(other.stable * $scale - one.stable) AS shift
    FROM decisions AS one
    JOIN matched ON matched.prompt = one.prompt AND one.position < shared
    JOIN decisions AS other ON other.prompt = matched.other_prompt AND other.position = one.position
    WHERE one.run = $one AND other.run = $other AND $final
    GROUP BY ALL
)
SELECT
    tap, layer, other_layer, places, agreement, overlap, entropy_change, logprob_change, next_logprob_change, kl_change, decided, shift
FROM compared
LEFT JOIN shifted USING (tap, layer)
ORDER BY layer, tap_order(tap)
