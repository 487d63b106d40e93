-- For each position, the layer where its final prediction leads first, and the one from which it leads for good.
-- positions = all: all, last, last:N, a position, or A:B
-- by = none: metadata key to show with each row
-- limit = none: most rows to return
-- needs: final
SELECT split, id, position, input.token AS input, final.token AS final, final_logprob AS logprob, first, stable
FROM decisions
JOIN asked USING (prompt)
LEFT JOIN tokens AS input ON input.token_id = token_ids[position + 1]
LEFT JOIN tokens AS final ON final.token_id = final_id
WHERE position BETWEEN lowest AND highest
ORDER BY prompt, position
LIMIT $limit
