local P, call = KEYS[1], redis.call
local version = ARGV[2]
if version == '0' then version = call('HGET', P .. 'current', ARGV[1]) or '0' end
local document = call('HGET', P .. 'doc:' .. ARGV[1], version)
if not document then return {} end
return {version, document}
