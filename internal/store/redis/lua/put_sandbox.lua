-- sb:ID  hash: rev, body (JSON), filed (JSON array: member and the index sets that hold it)
-- ix:... sorted sets of members in the order of listings, all of score 0
local P, call = KEYS[1], redis.call
local id, expect, revision, body, filed = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local key = P .. 'sb:' .. id
local old = call('HMGET', key, 'rev', 'filed')
local at = old[1] or '0'
if at ~= expect then return {'conflict', at} end
if old[2] ~= filed then
  if old[2] then
    local sets = cjson.decode(old[2])
    for i = 2, #sets do call('ZREM', P .. 'ix:' .. sets[i], sets[1]) end
  end
  local sets = cjson.decode(filed)
  for i = 2, #sets do call('ZADD', P .. 'ix:' .. sets[i], 0, sets[1]) end
end
call('HSET', key, 'rev', revision, 'body', body, 'filed', filed)
return {'ok'}
