local P, call = KEYS[1], redis.call
local out, current = {}, call('HGETALL', P .. 'current')
for i = 1, #current, 2 do
  out[#out + 1] = current[i + 1]
  out[#out + 1] = call('HGET', P .. 'doc:' .. current[i], current[i + 1])
end
return out
