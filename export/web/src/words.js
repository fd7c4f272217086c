/** What the page says, in English and Korean; functions where a figure goes in. */
const WORDS = {
  en: {
    pick: "Open a .litertlm file:",
    send: "Send",
    stop: "Stop",
    fresh: "New chat",
    settings: "Settings",
    temperature: "Temperature (0: the likeliest)",
    topK: "Top-k",
    topP: "Top-p",
    most: "Most tokens",
    prompt: "Say something",
    loading: (share) => `Loading the model: ${Math.round(100 * share)} %`,
    starting: "Starting the model …",
    ready: (name) => `${name} is ready, on this device alone.`,
    missing: "No model here. Open a .litertlm file that smolite exported.",
    failed: (why) => `This did not work: ${why}`,
    figures: (first, speed) => `First text after ${first.toFixed(2)} s, then ${speed.toFixed(0)} tokens/s`,
  },
  ko: {
    pick: ".litertlm 파일 열기:",
    send: "보내기",
    stop: "멈추기",
    fresh: "새 대화",
    settings: "설정",
    temperature: "온도 (0: 가장 그럴듯한 것)",
    topK: "Top-k",
    topP: "Top-p",
    most: "최대 토큰 수",
    prompt: "말을 걸어 보세요",
    loading: (share) => `모델을 받는 중: ${Math.round(100 * share)} %`,
    starting: "모델을 시작하는 중 …",
    ready: (name) => `${name} 준비 완료. 이 기기에서만 계산합니다.`,
    missing: "여기에는 모델이 없습니다. smolite가 내보낸 .litertlm 파일을 여세요.",
    failed: (why) => `문제가 생겼습니다: ${why}`,
    figures: (first, speed) => `첫 글자까지 ${first.toFixed(2)}초, 그다음 초당 ${speed.toFixed(0)}토큰`,
  },
};

export const language = globalThis.navigator?.language?.startsWith("ko") ? "ko" : "en";
export const words = WORDS[language];
