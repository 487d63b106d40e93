-- Positions whose top token changes latest, with the tokens before and after the change.
-- positions = all: all, last, last:N, a position, or A:B
-- by = none: metadata key to show with each row
-- limit = 20: most rows to return
-- needs: final
SELECT split, id, position, input.token AS input, stable AS layer, before.token AS before, final.token AS after, final_logprob AS logprob
FROM decisions
JOIN asked USING (prompt)
LEFT JOIN tokens AS input ON input.token_id = token_ids[position + 1]
LEFT JOIN tokens AS before ON before.token_id = before_id
LEFT JOIN tokens AS final ON final.token_id = final_id
WHERE position BETWEEN lowest AND highest AND before_id IS NOT NULL
ORDER BY stable DESC, final_logprob DESC, prompt, position
LIMIT $limit
