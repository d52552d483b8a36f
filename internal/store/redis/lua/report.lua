-- ARGV[5] and on are the backoffs after the first, second ... attempt; the last one stands for all later ones.
local id, token, verb, text = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not held(id, token) then return {'conflict'} end
if verb == 'complete' then
  finish(id, 'done', '', text)
elseif verb == 'fail' then
  finish(id, 'dead', text, '')
else
  local attempt = tonumber(call('HGET', job_key(id), 'attempt'))
  release(id, text, now + tonumber(ARGV[4 + math.min(attempt, #ARGV - 4)]))
end
return {'ok'}
