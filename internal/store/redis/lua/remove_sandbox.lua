local id = ARGV[1]
local old = call('HGET', key, id)
if old then
  local _, was = filed_of(old)
  file('ZREM', id, was)
  call('HDEL', key, id)
end
return {'ok'}
