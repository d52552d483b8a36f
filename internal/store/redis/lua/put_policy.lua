-- doc:NAME  hash: version to the document (JSON)
-- current   hash: name to its current version; absent when there is none or it was removed
-- last      hash: name to the newest version ever
-- revision  counter of changes
local P, call = KEYS[1], redis.call
local name, expect, document, remove = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'
local current = call('HGET', P .. 'current', name) or '0'
if remove and current == '0' then return {'absent'} end
if current ~= expect then return {'conflict', current} end
local version = call('HINCRBY', P .. 'last', name, 1)
local time = redis.call('TIME')
local at = string.format('%.0f', time[1] * 1000000 + time[2])
call('HSET', P .. 'doc:' .. name, version, at .. '|' .. document)
if remove then call('HDEL', P .. 'current', name) else call('HSET', P .. 'current', name, version) end
call('INCR', P .. 'revision')
return {'ok', version, at}
