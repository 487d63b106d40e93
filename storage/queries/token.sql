-- Places where a token, or one of a set, is among the best.
-- token: token to look for, as its text, id:N, or field:NAME as given to --track; repeat for a set
-- tap = resid_post: tap to search, or all
-- layers = all: all, a list such as 0,5-10, a layer such as -1, or a slice such as 20:
-- positions = all: all, last, last:N, a position, or A:B
-- rank = 1: look among this many best tokens
-- by = none: metadata key to show with each row
-- limit = none: most rows to return
-- needs: rank
SELECT asked.split, id, position, input.token AS input, tap, layer, rank, named.token, logprob
FROM (
    SELECT prompt, position, tap, layer, token_id, list_position(ids, token_id) AS rank, logprobs[rank] AS logprob
    FROM (SELECT prompt, position, tap, layer, ids, logprobs, unnest(wanted) AS token_id FROM places)
    WHERE list_position(ids, token_id) BETWEEN 1 AND $rank
) AS found
JOIN asked USING (prompt)
LEFT JOIN tokens AS input ON input.token_id = token_ids[position + 1]
LEFT JOIN tokens AS named ON named.token_id = found.token_id
ORDER BY prompt, position, layer, tap_order(tap), rank
LIMIT $limit
