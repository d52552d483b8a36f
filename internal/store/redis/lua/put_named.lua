-- named:TENANT  hash: id to version|name|body
-- names:TENANT  hash: name to id
local P, call = KEYS[1], redis.call
local tenant, id, name, version, body, max = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local bodies, names = P .. 'named:' .. tenant, P .. 'names:' .. tenant
local old = call('HGET', bodies, id)
if version == 1 then
  if old or call('HEXISTS', names, name) == 1 then return {'taken'} end
  local count = call('HLEN', names)
  if count >= max then return {'full', count} end
  call('HSET', names, name, id)
else
  if not old then return {'absent'} end
  local was = tonumber(string.match(old, '^%d+'))
  if was ~= version - 1 then return {'moved', was} end
end
call('HSET', bodies, id, string.format('%d', version) .. '|' .. name .. '|' .. body)
return {'ok'}
