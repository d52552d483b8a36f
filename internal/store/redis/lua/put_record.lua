-- records  hash: name to revision|body
local P, call = KEYS[1], redis.call
local name, body, expect = ARGV[1], ARGV[2], tonumber(ARGV[3])
local old = call('HGET', P .. 'records', name)
local current = 0
if old then current = tonumber(string.match(old, '^%d+')) end
if current ~= expect then return {'conflict', current} end
call('HSET', P .. 'records', name, string.format('%d', expect + 1) .. '|' .. body)
return {'ok'}
