-- keys    hash: id to the hash of its secret
-- hashes  hash: hash of the secret to the key (JSON)
local P, call = KEYS[1], redis.call
local id, hash, body = ARGV[1], ARGV[2], ARGV[3]
local old = call('HGET', P .. 'keys', id)
if old ~= hash then
  if call('HEXISTS', P .. 'hashes', hash) == 1 then return {'conflict'} end
  if old then call('HDEL', P .. 'hashes', old) end
end
call('HSET', P .. 'keys', id, hash)
call('HSET', P .. 'hashes', hash, body)
return {'ok'}
