-- ARGV[5] and on are the backoffs after the first, second ... attempt; the last one stands for all later ones.
local verb, text = ARGV[3], ARGV[4]
local j = held(ARGV[1], ARGV[2])
if not j then return {'conflict'} end
if verb == 'complete' then
  finish(j, 'done', '', text)
elseif verb == 'fail' then
  finish(j, 'dead', text, '')
else
  release(j, text, now + tonumber(ARGV[4 + math.min(j.attempt, #ARGV - 4)]))
end
return {'ok', num(now), j.enqueued, j.attempt, j.node, num(j.deadline)}
