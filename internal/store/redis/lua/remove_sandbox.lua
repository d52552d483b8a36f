local P, call = KEYS[1], redis.call
local key = P .. 'sb:' .. ARGV[1]
local filed = call('HGET', key, 'filed')
if filed then
  local sets = cjson.decode(filed)
  for i = 2, #sets do call('ZREM', P .. 'ix:' .. sets[i], sets[1]) end
  call('DEL', key)
end
return {'ok'}
