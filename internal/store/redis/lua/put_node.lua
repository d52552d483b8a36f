-- nodes  hash: name to MICROSECONDS|JSON, the first being when its lease ends
local time = redis.call('TIME')
local ends = time[1] * 1000000 + time[2] + tonumber(ARGV[3])
redis.call('HSET', KEYS[1] .. 'nodes', ARGV[1], string.format('%.0f', ends) .. '|' .. ARGV[2])
return {'ok'}
