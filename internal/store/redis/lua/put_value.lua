-- ARGV: how, name, value, milliseconds (0: for good)
local key = KEYS[1] .. 'value:' .. ARGV[2]
if ARGV[1] == 'create' and redis.call('EXISTS', key) == 1 then
  return {'taken'}
end
if ARGV[4] == '0' then
  redis.call('SET', key, ARGV[3])
else
  redis.call('SET', key, ARGV[3], 'PX', ARGV[4])
end
redis.call('ZADD', KEYS[1] .. 'names', 0, ARGV[2])
return {'ok'}
