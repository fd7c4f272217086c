plugins {
    id("com.android.application")
}

android {
    namespace = "dev.smolite.chat"
    compileSdk = 36

    defaultConfig {
        applicationId = "dev.smolite.chat"
        minSdk = 24 // that of litertlm-android
        targetSdk = 36
        versionCode = 1
        versionName = "0.1.0"
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

dependencies {
    implementation("com.google.ai.edge.litertlm:litertlm-android:0.18.0")
}
