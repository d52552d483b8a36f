local P, call = KEYS[1], redis.call
local hash = call('HGET', P .. 'keys', ARGV[1])
if hash then
  call('HDEL', P .. 'hashes', hash)
  call('HDEL', P .. 'keys', ARGV[1])
end
return {'ok'}
