-- layout  hash: version, shards
local key = KEYS[1] .. 'layout'
if redis.call('EXISTS', key) == 0 then redis.call('HSET', key, 'version', ARGV[1], 'shards', ARGV[2]) end
return redis.call('HMGET', key, 'version', 'shards')
