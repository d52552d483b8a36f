local id, expect, filed, body = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local old = call('HGET', key, id)
local at, was = '0', nil
if old then at, was = filed_of(old) end
if at ~= expect then return {'conflict', at} end
if was ~= filed then
  if was then file('ZREM', id, was) end
  file('ZADD', id, filed)
end
call('HSET', key, id, string.format('%d|%d|', at + 1, #filed) .. filed .. body)
return {'ok'}
