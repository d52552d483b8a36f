local P, call = KEYS[1], redis.call
local tenant, ref = ARGV[1], ARGV[2]
local bodies = P .. 'named:' .. tenant
local body = call('HGET', bodies, ref)
if not body then
  local id = call('HGET', P .. 'names:' .. tenant, ref)
  if id then body = call('HGET', bodies, id) end
end
if not body then return {} end
return {body}
