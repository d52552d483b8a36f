local P, call = KEYS[1], redis.call
local tenant, id = ARGV[1], ARGV[2]
local body = call('HGET', P .. 'named:' .. tenant, id)
if not body then return {'absent'} end
call('HDEL', P .. 'names:' .. tenant, string.match(body, '^%d+|([^|]*)|'))
call('HDEL', P .. 'named:' .. tenant, id)
return {'ok'}
